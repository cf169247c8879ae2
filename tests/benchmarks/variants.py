"""What settings are worth on one budget: history, objective, adapters.

    python tests/benchmarks/variants.py [--pairs 96] [--only NAME ...] [--folder FOLDER] [--set NAME=VALUE ...]
        [--json FILE]

Runs of demo.toml through the command line, with the same seed, base model, prompts, held-out answers, and the same
number of optimizer steps over the same number of pairs in each iteration: with history, an iteration's pairs are drawn
from two iterations', and the rest is left. What is compared is the loss of the held-out human answers against the base
model's (mean, and the 95 % interval of a paired bootstrap), the SPIN margin there, and what the run took. Runs in
FOLDER that are finished are not run again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

VARIANTS: dict[str, dict[str, Any]] = {
    "history = 0, logistic, all weights": {},
    "history = 1": {"spin.history": 1},
    "hinge": {"objective.loss": "hinge"},
    "LoRA, r = 16, lr = 2e-4": {"lora.r": 16, "lora.alpha": 16, "lora.export": "adapter", "training.lr": 2e-4},
}
"""The first is what the others differ from; an adapter has the rate that is usual for one."""

_ALONE = {
    "warm_up.max_epochs": 0,
    "control.sft": "false",
    "generation.max_new_tokens": 32,
    "spin.ref_policy_kl_penalty": 0.1,
}
"""Self-play from the base model, without what demo.toml has beside it."""

_ROW = (
    "| {name} | {loss:.3f} | {mean:+.3f} ({low:+.3f} to {high:+.3f}) | {margin:+.2f} | {minutes:.1f} | {stored:.0f} |"
)
_HEAD = (
    "| variant | NLL, nats a token | change from the base, 95 % | SPIN margin | minutes | stored, MiB |\n"
    "| --- | --- | --- | --- | --- | --- |"
)


def run(folder: Path, changes: dict[str, Any], given: list[str], num_pairs: int) -> dict[str, Any]:
    """One run, or what is there of one, and what its last iteration came to."""
    budget = {"data.max_train_records": num_pairs, "training.limit_train_batches": num_pairs // 8}
    settings = [f"{name}={value}" for name, value in (_ALONE | budget | changes).items()] + given
    command = ["spin-pipeline", "run", "--config", "demo", "--run-uri", str(folder)]
    done = subprocess.run([*command, *(part for each in settings for part in ("--set", each))], stdout=sys.stderr)
    if done.returncode:
        raise SystemExit(f"{folder} ended with {done.returncode}")
    manifests = [json.loads(path.read_text("utf-8")) for path in folder.rglob("*.json")]
    steps = [found for found in manifests if isinstance(found, dict) and found.keys() >= {"step", "duration_s"}]
    last = max(
        (found for found in steps if found["step"] == "checkpoint"), key=lambda found: found["facts"]["iteration"]
    )
    stored = sum(path.stat().st_size for path in (folder / "iterations").rglob("*") if path.is_file())
    facts = last["facts"]
    return {
        "loss": facts["val_loss"],
        **facts["from_base"],
        "margin": facts["spin_margin"],
        "iterations": facts["iteration"] + 1,
        "steps": facts["step"],
        "minutes": sum(found["duration_s"] for found in steps) / 60,
        "stored": stored / 2**20,
    }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=96, help="of an iteration; a multiple of 8")
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--folder", type=Path, help="for the runs, to stay; default: one that goes")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="in all runs")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        root = options.folder or Path(made)
        found = {
            name: run(root / str(list(VARIANTS).index(name)), VARIANTS[name], options.set, options.pairs)
            for name in options.only
        }
    sys.stdout.write(_HEAD + "\n")
    for name, row in found.items():
        sys.stdout.write(_ROW.format(name=name, **row) + "\n")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
