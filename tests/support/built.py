"""Helpers for the objects that kubectl builds from the manifests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

MANIFESTS = Path(__file__).parents[2] / "manifests"
FOLDERS = ("base", "overlays/dev", "overlays/gpu", "schedule", "model-cache")

Objects = dict[str, list[dict[str, Any]]]
"""The objects of each kustomization."""


def of_kind(items: list[dict[str, Any]], *kinds: str) -> list[dict[str, Any]]:
    return [item for item in items if item["kind"] in kinds]


def only(items: list[dict[str, Any]], kind: str, name: str = "") -> dict[str, Any]:
    (selected,) = [
        item for item in of_kind(items, kind) if item["metadata"]["name"] == (name or item["metadata"]["name"])
    ]
    return selected
