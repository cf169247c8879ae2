"""What a save of several ranks costs: how long it holds up a step, and the memory of the first rank.

    python tests/benchmarks/saves.py [--ranks 2] [--stage 3] [--layers 10] [--rate 50] [--json FILE]

Trains an epoch of nine steps of a Llama of 4.2 million parameters a layer, with a save after the fourth and the eighth,
in a bucket of an S3 server on this machine behind a proxy that passes on `--rate` MB a second. Printed: the seconds
between two steps that are no step's, where there is a save and where there is none; those from the last step to the end
of the ranks, which publish the policy, and from the first step to there; and the first rank's peak memory before the
first save, up to the last step, and in all.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from spin_components.data.builtin import docstrings, make_tiny_llama
from spin_components.record.events import EventTail
from spin_components.store.open import open_run
from spin_components.train_epoch.step import train
from support.playing import begin, hardware, play_scores
from support.s3_server import BUCKET, S3Server, free_port
from support.small import small_settings

STEPS, INTERVAL, BLOCK = 9, 4, 1 << 16


class SlowLink:
    """A proxy before a server that passes on so many bytes a second, of all connections together."""

    def __init__(self, port: int, rate: float) -> None:
        self.port, self._behind, self._rate = free_port(), port, rate
        self._free_at = 0.0
        self._loop = asyncio.new_event_loop()
        started = threading.Event()
        threading.Thread(target=self._run, args=[started], daemon=True).start()
        started.wait()

    def _run(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(asyncio.start_server(self._connect, "127.0.0.1", self.port))
        started.set()
        self._loop.run_forever()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            behind_reader, behind_writer = await asyncio.open_connection("127.0.0.1", self._behind)
            await asyncio.gather(self._pass_on(reader, behind_writer, slow=True), self._pass_on(behind_reader, writer))

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, slow: bool = False) -> None:
        with suppress(OSError):
            while block := await reader.read(BLOCK):
                if slow:
                    self._free_at = max(self._free_at, time.monotonic()) + len(block) / self._rate
                    await asyncio.sleep(self._free_at - time.monotonic())
                writer.write(block)
                await writer.drain()
            writer.close()


class Watch:
    """Peak memory of the first rank, by time."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, int]] = []
        self.ended = 0.0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        rank: psutil.Process | None = None
        while not self._stopped.wait(0.02):
            try:
                rank = rank or _first_rank()
                if rank:
                    self.samples.append((time.time(), rank.memory_info().rss))
                    self.ended = time.time()
            except psutil.Error:
                continue


def _first_rank() -> psutil.Process | None:
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if "spin_components.training.rank" in process.cmdline() and process.environ().get("RANK") == "0":
                return process
    return None


def make_model(folder: Path, layers: int) -> None:
    """A Llama with random weights and the tokenizer of `tiny.toml`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    make_tiny_llama(folder)
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": layers, "num_attention_heads": 8}
    config = json.loads((folder / "config.json").read_bytes()) | sizes
    config |= {"num_key_value_heads": 8, "head_dim": 64}
    torch.manual_seed(0)
    (folder / "model.safetensors").unlink()
    LlamaForCausalLM(LlamaConfig(**config)).save_pretrained(folder)


def measure(ranks: int, stage: int, layers: int, rate: float) -> dict[str, float]:
    """Train one epoch; returns medians in seconds, and memory in MiB."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "model", layers)
        rows = ({"prompt": question, "response": answer} for question, answer in docstrings(limit=40))
        (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        server = S3Server(folder / "s3")
        link = SlowLink(server.port, rate * 1e6)
        os.environ |= server.variables | {"SPIN_CACHE_DIR": str(folder / "cache"), "SPIN_CACHE_GIB": "1"}
        settings = small_settings(
            f"s3://{BUCKET}/run",
            folder / "model",
            folder / "data.jsonl",
            data={"max_train_records": STEPS * ranks, "validation_size": 4},
            generation={"max_new_tokens": 8},
            validation={"num_samples": 0},
            training={
                "backend": "deepspeed",
                "zero_stage": stage,
                "global_batch_size": ranks,
                "micro_batch_size": 1,
                "save_interval": INTERVAL,
                "lr": 1e-5,
            },
            hardware={"ranks": ranks, "threads": 1},
        )
        reference = begin(settings)
        scores = play_scores(settings, 0, reference)
        os.environ["S3_ENDPOINT"] = f"http://127.0.0.1:{link.port}"
        watch = Watch()
        train(settings.run.uri, 0, 0, reference, scores, hardware(settings))
        watch.stop()
        os.environ["S3_ENDPOINT"] = server.endpoint
        with open_run(settings.run.uri) as run:
            events = EventTail(run).new()
        result = _result(events, watch)
        server.kill()
        shutil.rmtree(folder / "cache", ignore_errors=True)
    return result


def _result(events: list[dict[str, Any]], watch: Watch) -> dict[str, float]:
    steps = [event for event in events if event["kind"] == "metrics"]
    assert len(steps) == STEPS, f"{len(steps)} steps left an event, expected {STEPS}: larger steps are needed"
    gaps = [after["time"] - before["time"] - after["step_time"] for before, after in itertools.pairwise(steps)]
    saves = [gap for done, gap in enumerate(gaps, start=1) if done % INTERVAL == 0]
    others = [gap for done, gap in enumerate(gaps, start=1) if done % INTERVAL]
    first_save = steps[INTERVAL - 1]["time"]
    peaks = [max(rss for at, rss in watch.samples if at <= until) for until in (first_save, steps[-1]["time"], 2e10)]
    return {
        "step_s": statistics.median(step["step_time"] for step in steps),
        "between_steps_s": statistics.median(others),
        "held_up_by_a_save_s": statistics.median(saves),
        "publishing_s": watch.ended - steps[-1]["time"],
        "epoch_s": watch.ended - steps[0]["time"],
        "peak_before_saves_mib": peaks[0] / 2**20,
        "peak_with_saves_mib": peaks[1] / 2**20,
        "peak_with_publishing_mib": peaks[2] / 2**20,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--stage", type=int, default=3)
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--rate", type=float, default=50.0, help="MB a second")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    result = measure(arguments.ranks, arguments.stage, arguments.layers, arguments.rate)
    for name, value in result.items():
        sys.stdout.write(f"{name:28} {value:10.2f}\n")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
