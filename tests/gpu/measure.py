"""Checks and measures the product on one GPU: parity, training in bf16, vLLM, speed with a billion parameters, a run.

    python tests/gpu/measure.py [--size full|tiny] [--device cuda|cpu] [--limit 480] [--parts NAME ...] [--json FILE]

`make gpu` calls it, with the Python that PYTHON names. It needs no network and no files: the models are made on the
spot, with random weights. Each part is a process of its own, which is ended where the time is up. Printed: a line for
each check and figure; the exit code is 1 where a check fails, or a part has not ended.

- `device`: rate of bf16 matrix products, to which the shares below refer.
- `parity`: log-probabilities and gradients, padded and packed with each kernel of attention, in float32 and bf16,
  against stock `transformers` on the CPU in float64.
- `training`: eight updates in float32 and bf16; the first loss is ln 2, the last is lower.
- `engine`: answers of the engine, whose log-probabilities the scorer must give too (`SAMPLER_TOLERANCE`).
- `speed`: scoring and training at 1.3 billion parameters, padded and packed with each kernel: tokens a second, share
  of the bf16 rate, peak memory. Prompts of 64 to 256 tokens, answers of 64 to 512.
- `generation`: tokens a second of the engine at 1.3 billion parameters, and the time until it is ready.
- `run`: the configuration `tiny` through the command line, in bf16 with DeepSpeed where it is installed.

`--size tiny` has the same parts with small shapes; it is what the test suite runs on a CPU.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from gpu.bench import SHAPES, Bench, Finding
from gpu.parts import PARTS


def in_a_process(name: str, options: argparse.Namespace, seconds: float) -> Iterator[Finding]:
    """A part's findings; what it found before it failed or its time was up counts too."""
    context = multiprocessing.get_context("forkserver")  # torch is imported once, and no part inherits a CUDA context
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(name, options.device, options.size, sender))
    process.start()
    sender.close()
    until, why = time.monotonic() + seconds, ""
    try:
        while not why:
            if receiver.poll(max(until - time.monotonic(), 0)):
                yield receiver.recv()
            else:
                why = f"not done after {max(seconds, 0):.0f} s"
                process.kill()
    except EOFError:  # it has ended
        pass
    process.join()
    if why or process.exitcode:
        yield Finding(name, "part", why or f"ended with {process.exitcode}", is_right=False)


def measure(name: str, device_name: str, size: str, sender: Any) -> None:
    """Send each finding of a part, in this process."""
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(torch.device(device_name), SHAPES[size], Path(folder))
        for finding in PARTS[name](bench):
            sender.send(finding)


def main(arguments: list[str] | None = None) -> int:
    """Run the parts in turn; returns 1 where a check fails."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=list(SHAPES), default="full")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--limit", type=float, default=480.0, help="seconds for all parts together")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU; --device cpu --size tiny tries the same on a CPU")
    multiprocessing.set_forkserver_preload(["torch", "transformers"])
    until = time.monotonic() + options.limit
    findings: list[Finding] = []
    for name in options.parts:
        for finding in in_a_process(name, options, until - time.monotonic()):
            findings.append(finding)
            mark = {None: "    ", True: "ok  ", False: "FAIL"}[finding.is_right]
            sys.stdout.write(f"{mark} {finding.part:<12}{finding.what:<40}{finding.value}\n")
            sys.stdout.flush()
    if options.json:
        options.json.write_text(json.dumps([asdict(finding) for finding in findings], indent=2) + "\n", "utf-8")
    return int(any(finding.is_right is False for finding in findings))


if __name__ == "__main__":
    sys.exit(main())
