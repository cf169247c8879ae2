"""Generation, scoring and validation by several processes of one machine, against one process with all threads.

    python tests/benchmarks/processes.py [--ranks 2] [--pairs 64] [--new-tokens 64] [--rounds 2] [--shared]
        [--json FILE]

The demo model and its docstrings, with the `transformers` engine, in float32. Both contestants do `prepare`, validate
the base model, generate and score, in a process of their own, in turn. Printed are the seconds of each step as their
manifests have them, with the start of processes, and how many processes there were: a step that is too short starts
none. `--shared` has every step start them, however short it is.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from spin_components.settings.settings import Settings

STEPS = ("validate", "generate", "ref-logprob")


def settings_of(folder: Path, options: argparse.Namespace, ranks: int) -> Settings:
    """A run whose pairs and held-out answers are as many."""
    return Settings.model_validate(
        {
            "run": {"uri": str(folder)},
            "model": {"base": "builtin:smollm2-135m-instruct"},
            "data": {
                "train": "builtin:stdlib-docstrings",
                "max_train_records": options.pairs,
                "validation_size": options.pairs,
                "max_length": 384,
                "max_prompt_length": 256,
            },
            "spin": {"max_iterations": 1},
            "generation": {
                "engine": "transformers",
                "max_new_tokens": options.new_tokens,
                "block_size": max(1, options.pairs // (2 * options.ranks)),
            },
            "training": {"precision": "float32", "global_batch_size": 8 * options.ranks, "micro_batch_size": 8},
            "validation": {"num_samples": options.pairs // 4},
            "hardware": {"device": "cpu", "ranks": ranks},
        }
    )


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Play the steps in this process, and read their manifests."""
    from spin_components.generate.step import generate_shard
    from spin_components.memory import processes
    from spin_components.prepare.step import prepare
    from spin_components.ref_logprob.step import score_shard
    from spin_components.store import layout
    from spin_components.store.local import LocalRun
    from spin_components.store.manifests import read_manifest
    from spin_components.validate.step import validate

    if options.shared:
        processes.START_S = 0.0
    with tempfile.TemporaryDirectory() as name:
        settings = settings_of(Path(name, "run"), options, options.one)
        uri, machine = settings.run.uri, settings.hardware.model_dump(mode="json")
        compiled = {"max_iterations": 1, "max_epochs": [1], "shards": 1, "nodes": 1}
        compiled |= dict.fromkeys(("evaluates", "warms_up", "controls", "decides"), False)
        base = prepare(uri, settings.model_dump(mode="json", include=set(Settings.model_fields)), compiled)
        reference = validate(uri, layout.BASE, 0, base, machine, "")
        score_shard(uri, 0, 0, reference, generate_shard(uri, 0, 0, reference, machine), machine)
        run = LocalRun(Path(uri))
        keys = (
            layout.BASE_VALIDATION,
            layout.manifest_of(layout.generations(0, 0)),
            layout.manifest_of(layout.ref_logprobs(0, 0)),
        )
        manifests = [read_manifest(run, key) for key in keys]
        return {
            "seconds": {step: made.duration_s for step, made in zip(STEPS, manifests, strict=True)},
            "num_engines": manifests[1].facts.get("num_engines", 1),
            "answers": manifests[1].outputs[layout.generations(0, 0)].sha256,
        }


def main() -> None:
    """Alternate, then print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--shared", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        sys.stdout.write("\nRESULT " + json.dumps(measure(options)) + "\n")
        return
    found: dict[int, list[dict[str, Any]]] = {1: [], options.ranks: []}
    for _ in range(options.rounds):
        for ranks in found:
            found[ranks].append(_apart(ranks, options))
    report(found)
    if options.json:
        options.json.write_text(json.dumps(found))


def _apart(ranks: int, options: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", str(ranks), "--ranks", str(options.ranks)]
    command += ["--pairs", str(options.pairs), "--new-tokens", str(options.new_tokens)]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    output = subprocess.run(
        command + ["--shared"] * options.shared, stdout=subprocess.PIPE, text=True, check=True, env=environment
    )
    result: dict[str, Any] = json.loads(output.stdout.rpartition("RESULT ")[2])
    sys.stderr.write(f"hardware.ranks = {ranks}: {result['seconds']}, {result['num_engines']} engines\n")
    return result


def report(found: dict[int, list[dict[str, Any]]]) -> None:
    """Medians of each step and of their sum, and whether the answers were the same."""
    lines = [f"{'hardware.ranks':16}" + "".join(f"{step:>13}" for step in (*STEPS, "sum", "engines"))]
    for ranks, rounds in found.items():
        seconds = [statistics.median(each["seconds"][step] for each in rounds) for step in STEPS]
        total = statistics.median(sum(each["seconds"].values()) for each in rounds)
        cells = "".join(f"{value:13.1f}" for value in (*seconds, total))
        lines.append(f"{ranks:<16}{cells}{rounds[-1]['num_engines']:13}")
    digests = {each["answers"] for rounds in found.values() for each in rounds}
    lines.append("answers: the same" if len(digests) == 1 else f"answers: {len(digests)} different files")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
