"""In-memory objects of a Kubernetes API server: create, list, watch, patch, and delete with owned objects."""

from __future__ import annotations

import copy
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of object.

    Attributes:
        api_version: `v1` or `group/version`.
        plural: name in paths.
        name: value of `kind`.
    """

    api_version: str
    plural: str
    name: str
    is_namespaced: bool = True

    @property
    def group(self) -> str:
        return self.api_version.partition("/")[0] if "/" in self.api_version else ""


CORE = (
    Kind("v1", "namespaces", "Namespace", False),
    Kind("v1", "nodes", "Node", False),
    Kind("v1", "pods", "Pod"),
    Kind("v1", "services", "Service"),
    Kind("v1", "secrets", "Secret"),
    Kind("v1", "configmaps", "ConfigMap"),
    Kind("v1", "events", "Event"),
    Kind("v1", "serviceaccounts", "ServiceAccount"),
    Kind("v1", "persistentvolumeclaims", "PersistentVolumeClaim"),
    Kind("v1", "resourcequotas", "ResourceQuota"),
    Kind("batch/v1", "jobs", "Job"),
    Kind("networking.k8s.io/v1", "networkpolicies", "NetworkPolicy"),
    Kind("storage.k8s.io/v1", "storageclasses", "StorageClass", False),
    Kind("rbac.authorization.k8s.io/v1", "roles", "Role"),
    Kind("rbac.authorization.k8s.io/v1", "rolebindings", "RoleBinding"),
    Kind("rbac.authorization.k8s.io/v1", "clusterroles", "ClusterRole", False),
    Kind("rbac.authorization.k8s.io/v1", "clusterrolebindings", "ClusterRoleBinding", False),
)
TRAINER = (
    Kind("trainer.kubeflow.org/v1alpha1", "trainjobs", "TrainJob"),
    Kind("trainer.kubeflow.org/v1alpha1", "trainingruntimes", "TrainingRuntime"),
    Kind("trainer.kubeflow.org/v1alpha1", "clustertrainingruntimes", "ClusterTrainingRuntime", False),
)
"""Kinds of Kubeflow Trainer 2; only served if a test adds them."""


class ApiError(Exception):
    """An error response, as in the API's Status."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status, self.reason = status, reason


@dataclass
class Objects:
    """All objects, each a JSON object, by kind, namespace and name; safe to use from several threads.

    Attributes:
        on_create: called with each object that a request creates, in the role of a controller.
    """

    kinds: list[Kind] = field(default_factory=lambda: list(CORE))
    on_create: list[Callable[[Object], None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.changed = threading.Condition(threading.RLock())
        self._objects: dict[tuple[Kind, str, str], Object] = {}
        self._events: list[tuple[int, Kind, str, Object]] = []
        self._version = 100

    def kind_of(self, item: Object) -> Kind:
        """The kind of an object."""
        for kind in self.kinds:
            if (kind.api_version, kind.name) == (item.get("apiVersion"), item.get("kind")):
                return kind
        raise ApiError(400, "BadRequest", f"no kind {item.get('kind')!r} is registered in {item.get('apiVersion')!r}")

    def put(self, item: Object) -> Object:
        """Create or replace an object without a request; a namespaced one names its namespace."""
        kind = self.kind_of(item)
        with self.changed:
            key = (kind, item["metadata"].get("namespace", ""), item["metadata"]["name"])
            return self._store("MODIFIED" if key in self._objects else "ADDED", kind, item)

    def create(self, kind: Kind, namespace: str, item: Object) -> Object:
        """Create an object, as by POST."""
        item = copy.deepcopy(item)
        if (item.get("apiVersion"), item.get("kind")) != (kind.api_version, kind.name):
            described = f"{item.get('apiVersion')}, {item.get('kind')}"
            raise ApiError(400, "BadRequest", f"expected {kind.api_version}, {kind.name}; the body is of {described}")
        metadata = item.setdefault("metadata", {})
        if metadata.get("namespace", namespace) != namespace:
            raise ApiError(400, "BadRequest", "the namespace of the object does not match the namespace of the request")
        if not metadata.get("name") and metadata.get("generateName"):
            metadata["name"] = metadata["generateName"] + uuid.uuid4().hex[:5]
        if not metadata.get("name"):
            raise ApiError(422, "Invalid", "metadata.name: Required value: name or generateName is required")
        if kind.is_namespaced:
            metadata["namespace"] = namespace
        with self.changed:
            if (kind, namespace, metadata["name"]) in self._objects:
                raise ApiError(409, "AlreadyExists", f'{kind.plural} "{metadata["name"]}" already exists')
            stored = self._store("ADDED", kind, item)
        for act in self.on_create:
            act(stored)
        return stored

    def get(self, kind: Kind, namespace: str, name: str) -> Object:
        """Get an object; raises a 404 error if it does not exist."""
        with self.changed:
            try:
                return copy.deepcopy(self._objects[kind, namespace, name])
            except KeyError:
                message = f'{kind.plural}{"." if kind.group else ""}{kind.group} "{name}" not found'
                raise ApiError(404, "NotFound", message) from None

    def find(self, plural: str, name: str, namespace: str = "") -> Object | None:
        """Find an object for a test; None if it does not exist."""
        with self.changed:
            matching = (
                item
                for (kind, item_namespace, known), item in self._objects.items()
                if (kind.plural, item_namespace, known) == (plural, namespace, name)
            )
            return copy.deepcopy(next(matching, None))

    def list(self, kind: Kind, namespace: str, labels: str = "", fields: str = "") -> tuple[list[Object], int]:
        """Objects of a namespace (`""` for all) that match the selectors, and the version of the list."""
        with self.changed:
            items = [
                copy.deepcopy(item)
                for (known, item_namespace, _), item in self._objects.items()
                if known == kind and namespace in ("", item_namespace) and selected(item, labels, fields)
            ]
            return items, self._version

    def update(self, kind: Kind, namespace: str, name: str, change: Callable[[Object], Object]) -> Object:
        """Replace an object by the result of a function; an outdated version is a conflict."""
        with self.changed:
            present = self.get(kind, namespace, name)
            changed = change(copy.deepcopy(present))
            version = changed["metadata"].get("resourceVersion", present["metadata"]["resourceVersion"])
            if version != present["metadata"]["resourceVersion"]:
                raise ApiError(409, "Conflict", f'{kind.plural} "{name}": the object has been modified')
            return self._store("MODIFIED", kind, changed)

    def delete(self, kind: Kind, namespace: str, name: str) -> Object:
        """Delete an object and the objects that it owns."""
        with self.changed:
            item = self.get(kind, namespace, name)
            del self._objects[kind, namespace, name]
            self._note("DELETED", kind, item)
            uid = item["metadata"]["uid"]
            owned = [
                key
                for key, other in self._objects.items()
                if any(owner["uid"] == uid for owner in other["metadata"].get("ownerReferences", []))
            ]
            for key in owned:
                if key in self._objects:
                    self.delete(*key)
            return item

    def events(self, kind: Kind, namespace: str, since: int, until: Callable[[], bool]) -> Iterator[tuple[str, Object]]:
        """Events after a version, as type and object, until a function returns True."""
        while not until():
            with self.changed:
                fresh = [event for event in self._events if event[0] > since]
                if not fresh:
                    self.changed.wait(0.05)
            for version, known, what, item in fresh:
                since = version
                if known == kind and namespace in ("", item["metadata"].get("namespace", "")):
                    yield what, item

    def _store(self, what: str, kind: Kind, item: Object) -> Object:
        item = copy.deepcopy(item)
        metadata = item["metadata"]
        key = (kind, metadata.get("namespace", ""), metadata["name"])
        before = self._objects.get(key, {}).get("metadata", {})
        metadata["uid"] = before.get("uid") or metadata.get("uid") or str(uuid.uuid4())
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        metadata["creationTimestamp"] = before.get("creationTimestamp") or metadata.get("creationTimestamp") or now
        self._objects[key] = item
        self._note(what, kind, item)
        return copy.deepcopy(item)

    def _note(self, what: str, kind: Kind, item: Object) -> None:
        self._version += 1
        item["metadata"]["resourceVersion"] = str(self._version)
        self._events.append((self._version, kind, what, copy.deepcopy(item)))
        self.changed.notify_all()


def merged(target: Any, patch: Any) -> Any:
    """Apply a JSON merge patch (RFC 7386)."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


def selected(item: Object, labels: str, fields: str) -> bool:
    """Whether a labelSelector (`a=b,c!=d,e`) and a fieldSelector match."""
    own = item["metadata"].get("labels") or {}
    return all(_holds(term, own.get) for term in labels.split(",") if term) and all(
        _holds(term, lambda path: _at(item, path)) for term in fields.split(",") if term
    )


def _holds(term: str, value_of: Callable[[str], str | None]) -> bool:
    if "!=" in term:
        name, _, value = term.partition("!=")
        return value_of(name.strip()) != value.strip()
    if "=" in term:
        name, _, value = term.replace("==", "=").partition("=")
        return value_of(name.strip()) == value.strip()
    return value_of(term.strip()) is not None


def _at(item: Object, path: str) -> str | None:
    value: Any = item
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return None if value is None else str(value)
