"""What a run costs beside its work: starting steps, and the pipeline that carries them.

    python tests/benchmarks/overhead.py [--rounds 3] [--demo] [--json FILE]

Start-up: from the start of a step's process, as a pod begins it (KFP's executor, the step's module, the model where it
has one), to its first useful work, in processes of their own in turn. Runs: the wall time of tiny.toml (and with --demo
of demo.toml) over the sum of what its steps' manifests say they took.

Where the 5 to 7 seconds of a step with SmolLM2-135M go, on an AMD EPYC, by `-X importtime`: torch 1.5 to 2.4;
transformers 3.6 to 4.6, of them `torch._dynamo`, which its masks import, 0.9, `torch.distributed.tensor` 0.9, its
table of what is installed 0.5, its quantizers 0.5; opening the weights 0.3; the first forwards, which hold packed
attention against the model's own, 0.7. What was taken away, from 14: scikit-learn and pandas 2.5, and scipy 0.5, which
transformers imports where it finds them (`model.loading.import_generation`); KFP's client 0.6 to 1, which a pod does
not import either, by `_KFP_RUNTIME`; 0.6 to 1.4 by shorter sequences in those first forwards. On one machine steps do
not pay this at all: they are forked from a process that has imported it (`spin_pipeline.local.driver`).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BEGIN = "import kfp.dsl.executor_main\n"
END = "\nimport time\nprint(time.monotonic())"
"""Not when the process has ended: what it takes to give back its memory is not its start."""
LOAD = """
import sys
from pathlib import Path
from spin_components.model.compute import Compute, resolve_compute, set_threads
from spin_components.settings.attempt import HardwareSettings
from spin_components.settings.settings import Settings
settings = Settings.model_validate({"model": {"base": sys.argv[1]}, "data": {"train": "-"}})
set_threads(settings.hardware)
compute = resolve_compute(settings.hardware, "float32")
"""
SCORED = "from spin_components.model.scoring import load_scored\nload_scored(Path(sys.argv[1]), settings, compute)\n"
STEPS = {
    "prepare": "import spin_components.prepare.step",
    "checkpoint": "import spin_components.checkpoint.step",
    "generate": LOAD
    + "import spin_components.generate.step\n"
    + "from spin_components.engine.engine import Sampling; from spin_components.engine.open import open_engine\n"
    + "from spin_components.settings.settings import GenerationSettings\n"
    + "sampling = Sampling(GenerationSettings(), [2], 0)\n"
    + "open_engine('transformers', Path(sys.argv[1]), settings.model, sampling, compute)",
    "ref-logprob": LOAD + "import spin_components.ref_logprob.step\n" + SCORED,
    "validate": LOAD + "import spin_components.validate.step\n" + SCORED,
    "train-epoch": LOAD + "import spin_components.training.rank\n" + SCORED,
}


def start_up(model: Path, rounds: int) -> dict[str, float]:
    """Seconds by step, medians."""
    seconds: dict[str, list[float]] = {name: [] for name in STEPS}
    for _ in range(rounds):
        for name, code in STEPS.items():
            started = time.monotonic()
            command = [sys.executable, "-c", BEGIN + code + END, str(model)]
            environment = {**os.environ, "_KFP_RUNTIME": "true"}
            ended = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
            seconds[name].append(float(ended.stdout.split()[-1]) - started)
    return {name: statistics.median(found) for name, found in seconds.items()}


def run_of(config: str, folder: Path) -> tuple[float, float]:
    """Wall time of a run, and the sum of its steps' durations."""
    uri = folder / config
    started = time.monotonic()
    command = ["spin-pipeline", "run", "--config", config, "--run-uri", str(uri), "--set", "generation.shards=1"]
    subprocess.run(command, check=True, capture_output=True)
    wall = time.monotonic() - started
    manifests = [json.loads(path.read_text("utf-8")) for path in uri.rglob("*.json")]
    return wall, sum(m["duration_s"] for m in manifests if isinstance(m, dict) and "duration_s" in m)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--demo", action="store_true", help="run demo.toml as well: minutes")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    from spin_components.data.builtin import make_smollm2

    with tempfile.TemporaryDirectory() as name:
        make_smollm2(Path(name) / "model")
        seconds = start_up(Path(name) / "model", options.rounds)
        for step, taken in seconds.items():
            sys.stdout.write(f"{step:12}{taken:8.1f} s to its first work\n")
        runs = {}
        for config in ("tiny", "demo") if options.demo else ("tiny",):
            wall, work = runs[config] = run_of(config, Path(name))
            share = (wall - work) / wall
            sys.stdout.write(f"{config:12}{wall:8.1f} s, {work:.1f} s of it in steps: {share:.0%} orchestration\n")
    if options.json:
        options.json.write_text(json.dumps({"start_up_s": seconds, "runs": runs}))


if __name__ == "__main__":
    main()
