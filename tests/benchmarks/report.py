"""The report of a large run: how long it takes to build, how big it is, and how soon a browser shows it.

    python tests/benchmarks/report.py [--pairs 50000] [--steps 10000] [--iterations 4]

The run's files are generated, in the true formats, by the functions that steps write them with; no model is involved
but for the tokenizer of `tiny.toml`.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from playwright.sync_api import sync_playwright
from pyarrow import parquet

from spin_components.data.builtin import make_tiny_llama
from spin_components.data.pair_counts import PairCounts
from spin_components.data.shards import AnswerLoss, Pair, PairReward, Score, write_rows
from spin_components.report.page import build_page
from spin_components.settings.settings import Settings
from spin_components.store import layout
from spin_components.store.digests import FileDigest, digest_file, digest_tree
from spin_components.store.local import LocalRun
from spin_components.store.manifests import Manifest, now

NUM_VALIDATION = 2000
PROMPT, ACTUAL, GENERATED = (40, 200), (60, 300), (60, 400)  # tokens, from and to
VOCABULARY = (10, 800)
TOKENIZER = "tokenizer.json"


class LargeRun:
    """Writes a finished run of a given size; `share` shortens all texts."""

    def __init__(self, folder: Path, pairs: int, steps: int, iterations: int, *, share: float = 1.0) -> None:
        self.run = LocalRun(folder)
        self.random = np.random.default_rng(0)
        self.index = pa.array(np.arange(pairs))
        self.num_pairs, self.num_iterations = pairs, iterations
        self.steps_each = steps // iterations
        self.share = share
        make_tiny_llama(folder / layout.BUILTIN_MODEL)

    def write(self) -> None:
        """All of it."""
        settings = Settings.model_validate(
            {
                "run": {"name": "large"},
                "model": {"base": "builtin:tiny-llama"},
                "data": {"train": "generated"},
                "spin": {"max_iterations": self.num_iterations},
            }
        )
        base = {name: file.model_dump() for name, file in digest_tree(self.run.path(layout.BUILTIN_MODEL)).items()}
        record = {
            "settings": settings.model_dump(mode="json"),
            "base_model": {"uri": self.run.uri_of(layout.BUILTIN_MODEL), "files": base},
            "data": {"train": {"uri": "generated", "files": base}},
            "seed": 0,
            "version": "0",
            "python": "3.11",
            "packages": {},
            "created_at": now(),
        }
        self.run.write_json(layout.RUN, record)
        facts = {"num_train": self.num_pairs, "num_validation": NUM_VALIDATION, "num_shards": 1, "eos_ids": [2]}
        self._manifest(layout.DATA_MANIFEST, "prepare", {}, facts)
        self._validation(layout.BASE, 4.0)
        prompts = {"prompt_ids": self._ids(PROMPT), "actual_ids": self._ids(ACTUAL)}
        for t in range(self.num_iterations):
            self._generations(t, prompts)
            self._epoch(t)
            self._checkpoint(t, self._validation(t, 4.0 - 0.3 * (t + 1)))

    def _generations(self, t: int, prompts: dict[str, Any]) -> None:
        key, answers = layout.generations(t, 0), self._ids(GENERATED)
        ends = self.random.choice(["stop", "length"], self.num_pairs)
        columns = {"index": self.index, **prompts, "generated_ids": answers, "finish_reason": pa.array(ends)}
        columns |= {"origin": self._origin(t), "sampled_logprob": self._numbers(-450, 50)}
        facts = {
            "num_pairs": self.num_pairs,
            "num_empty": 0,
            "num_identical": 0,
            "finish_reasons": dict(Counter(ends.tolist())),
            "mean_actual_tokens": sum(ACTUAL) / 2,
            "mean_generated_tokens": sum(GENERATED) / 2,
            "samples": [],
        }
        self._manifest(layout.manifest_of(key), "generate", self._rows(key, Pair, columns), facts)
        key = layout.ref_logprobs(t, 0)
        columns = {
            "index": self.index,
            "ref_actual": self._numbers(-600, 50),
            "ref_generated": self._numbers(-450, 50),
            "batch": pa.array(np.arange(self.num_pairs) // 64, pa.int32()),
            "origin": self._origin(t),
        }
        counts = PairCounts(num_pairs=self.num_pairs, num_by_origin={t: self.num_pairs}).model_dump(mode="json")
        self._manifest(layout.manifest_of(key), "ref-logprob", self._rows(key, Score, columns), counts)

    def _epoch(self, t: int) -> None:
        rows = []
        for i, noise in enumerate(self.random.normal(0, 0.05, self.steps_each).tolist()):
            progress = i / self.steps_each
            loss = math.log(2) * math.exp(-2 * progress) + abs(noise)
            metrics = {"loss": loss, "acc": min(1.0, 0.5 + progress / 2), "lr": 5e-7 * (1 - progress)}
            rewards = {"rewards_actual_mean": progress + noise, "rewards_generated_mean": noise - progress}
            place = {"step": t * self.steps_each + i + 1, "iteration": t, "epoch": 0}
            rows.append({**place, **metrics, **rewards, "grad_norm": 1 + abs(noise)})
        key = f"{layout.epoch(t, 0)}/metrics.json"
        self.run.write(key, json.dumps({"summary": {}, "steps": rows}, indent=2).encode())
        columns = {
            "index": self.index,
            "step": self.index,
            "reward_actual": self._numbers(1, 1),
            "reward_generated": self._numbers(-1, 1),
            "origin": self._origin(t),
        }
        outputs = {key: digest_file(self.run.path(key)), **self._rows(layout.rewards(t, 0), PairReward, columns)}
        self._manifest(layout.epoch_manifest(t, 0), "train-epoch", outputs, {"num_steps": self.steps_each})

    def _checkpoint(self, t: int, val_loss: float) -> None:
        facts = {
            "iteration": t,
            "epoch": 0,
            "val_loss": val_loss,
            "acc": 0.9,
            "rewards_actual_mean": 0.5,
            "rewards_generated_mean": -0.5,
            "ref_policy_kl_penalty": 0.1,
            "peak_lr": 5e-7,
            "decision": "continue" if t + 1 < self.num_iterations else "done",
        }
        tokenizer = f"{layout.epoch(t, 0)}/policy/{TOKENIZER}"
        self.run.path(tokenizer).parent.mkdir(parents=True)
        shutil.copyfile(self.run.path(f"{layout.BUILTIN_MODEL}/{TOKENIZER}"), self.run.path(tokenizer))
        outputs = {tokenizer: digest_file(self.run.path(tokenizer))}
        self._manifest(layout.checkpoint(t), "checkpoint", outputs, facts)

    def _validation(self, t: int, mean: float) -> float:
        key, noise = layout.validation(t, 0), self.random.normal(0, 0.5, NUM_VALIDATION)
        columns = {
            "index": pa.array(np.arange(NUM_VALIDATION)),
            "nll": pa.array(100 * (mean + noise), pa.float32()),
            "num_tokens": pa.array(np.full(NUM_VALIDATION, 100), pa.int32()),
        }
        outputs = self._rows(key.removesuffix(".json") + ".parquet", AnswerLoss, columns)
        self._manifest(key, "validate", outputs, {"val_loss": mean})
        return mean

    def _ids(self, lengths: tuple[int, int]) -> Any:
        numbers = (self.random.integers(*lengths, self.num_pairs) * self.share).astype(np.int64)
        ends = np.concatenate([[0], numbers.cumsum()])
        values = self.random.integers(*VOCABULARY, ends[-1], dtype=np.int32)
        return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(values))

    def _origin(self, t: int) -> Any:
        return pa.array(np.full(self.num_pairs, t), pa.int32())

    def _numbers(self, mean: float, deviation: float) -> Any:
        return pa.array(self.random.normal(mean, deviation, self.num_pairs), pa.float32())

    def _rows(self, key: str, kind: Any, columns: dict[str, Any]) -> dict[str, FileDigest]:
        """Columns under the schema that `write_rows` gives to a kind of row."""
        with self.run.staged(key) as staged:
            write_rows(staged.path, kind, [])
            schema = parquet.read_schema(staged.path)
            parquet.write_table(pa.table(columns, schema=schema), staged.path)
        return staged.outputs

    def _manifest(self, key: str, step: str, outputs: dict[str, FileDigest], facts: dict[str, Any]) -> None:
        manifest = Manifest(step=step, inputs={}, outputs=outputs, facts=facts, duration_s=60.0)
        self.run.write_json(key, manifest.model_dump(mode="json"))


def open_in_browser(file: Path) -> dict[str, float]:
    """Seconds until everything is drawn, and until a search has been answered."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        started = time.monotonic()
        page.goto(file.as_uri(), wait_until="load")
        page.wait_for_function("document.querySelectorAll('figure.chart svg').length === 11")
        page.locator(".open-row").first.wait_for()
        page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        opened_s = time.monotonic() - started
        search_s = page.evaluate(
            """() => { const find = document.querySelector('input[type=search]'); const from = performance.now();
            find.value = 'return'; find.dispatchEvent(new Event('input')); document.body.offsetHeight;
            return (performance.now() - from) / 1000; }"""
        )
        shown = page.locator(".shown").text_content()
        browser.close()
    sys.stdout.write(f"  {shown}\n")
    return {"opened_s": opened_s, "search_s": search_s}


def main() -> None:
    """Write the run, build its report, open it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=50_000)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--iterations", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        large = LargeRun(Path(folder) / "run", options.pairs, options.steps, options.iterations)
        large.write()
        for _ in range(3):
            started, busy = time.monotonic(), time.process_time()
            page = build_page(large.run).encode()
            took_s, busy_s = time.monotonic() - started, time.process_time() - busy
            sys.stdout.write(f"built in {took_s:.1f} s ({busy_s:.1f} s of processor), {len(page) / 1e6:.2f} MB\n")
        file = Path(folder) / "index.html"
        file.write_bytes(page)
        for _ in range(3):
            found = open_in_browser(file)
            sys.stdout.write(f"opened in {found['opened_s']:.2f} s, searched in {found['search_s']:.3f} s\n")


if __name__ == "__main__":
    main()
