"""The report of a large run: how long it takes to build, how big it is, and how soon a browser shows it.

    python tests/benchmarks/report.py [--pairs 50000] [--steps 10000] [--iterations 4]

The run's files are generated, in the true formats, by the functions that steps write them with; no model is involved
but for the tokenizer of `tiny.toml`.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from spin_components.data.shards import AnswerLoss, Pair, PairReward, Prompt, Score, write_rows
from spin_components.prepare.builtin import make_tiny_llama
from spin_components.report.page import build_page
from spin_components.settings import Settings
from spin_components.store import layout
from spin_components.store.digests import FileDigest, digest_file, digest_tree
from spin_components.store.local import LocalRun
from spin_components.store.manifests import Manifest, now

NUM_VALIDATION = 2000
PROMPT, ACTUAL, GENERATED = (40, 200), (60, 300), (60, 400)  # tokens, from and to
VOCABULARY = (10, 800)
TOKENIZER = "tokenizer.json"


class LargeRun:
    """Writes a finished run of a given size."""

    def __init__(self, folder: Path, pairs: int, steps: int, iterations: int) -> None:
        self.run = LocalRun(folder)
        self.random = random.Random(0)
        self.num_pairs, self.num_iterations = pairs, iterations
        self.steps_each = steps // iterations
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
        prompts = [Prompt(i, self._ids(PROMPT), self._ids(ACTUAL), True) for i in range(self.num_pairs)]
        outputs = self._rows(layout.VALIDATION, Prompt, prompts[:NUM_VALIDATION])
        facts = {"num_train": self.num_pairs, "num_validation": NUM_VALIDATION, "num_shards": 1, "eos_ids": [2]}
        self._manifest(layout.DATA_MANIFEST, "prepare", outputs, facts)
        self._validation(layout.BASE, 4.0)
        for t in range(self.num_iterations):
            self._iteration(t, prompts)

    def _iteration(self, t: int, prompts: list[Prompt]) -> None:
        pairs = [
            Pair(p.index, p.prompt_ids, p.actual_ids, self._ids(GENERATED), self.random.choice(["stop", "length"]))
            for p in prompts
        ]
        key = layout.generations(t, 0)
        facts = {
            "num_pairs": len(pairs),
            "num_empty": 0,
            "num_identical": 0,
            "finish_reasons": dict(Counter(pair.finish_reason for pair in pairs)),
            "mean_actual_tokens": sum(ACTUAL) / 2,
            "mean_generated_tokens": sum(GENERATED) / 2,
            "samples": [],
        }
        self._manifest(layout.manifest_of(key), "generate", self._rows(key, Pair, pairs), facts)
        key = layout.ref_logprobs(t, 0)
        scores = [Score(p.index, -3.0 * len(p.actual_ids), -2.0 * len(p.generated_ids), p.index // 64) for p in pairs]
        self._manifest(
            layout.manifest_of(key), "ref-logprob", self._rows(key, Score, scores), {"num_pairs": len(pairs)}
        )
        self._epoch(t, pairs)
        val_loss = self._validation(t, 4.0 - 0.3 * (t + 1))
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

    def _epoch(self, t: int, pairs: list[Pair]) -> None:
        rows = []
        for i in range(self.steps_each):
            noise, progress = self.random.gauss(0, 0.05), i / self.steps_each
            loss = math.log(2) * math.exp(-2 * progress) + abs(noise)
            metrics = {"loss": loss, "acc": min(1.0, 0.5 + progress / 2), "lr": 5e-7 * (1 - progress)}
            rewards = {"rewards_actual_mean": progress + noise, "rewards_generated_mean": noise - progress}
            place = {"step": t * self.steps_each + i + 1, "iteration": t, "epoch": 0}
            rows.append({**place, **metrics, **rewards, "grad_norm": 1 + abs(noise)})
        key = f"{layout.epoch(t, 0)}/metrics.json"
        self.run.write(key, json.dumps({"summary": {}, "steps": rows}, indent=2).encode())
        rewards_key = layout.rewards(t, 0)
        outputs = {
            key: digest_file(self.run.path(key)),
            **self._rows(
                rewards_key,
                PairReward,
                [PairReward(p.index, 1, self.random.gauss(1, 1), self.random.gauss(-1, 1)) for p in pairs],
            ),
        }
        self._manifest(layout.epoch_manifest(t, 0), "train-epoch", outputs, {"num_steps": self.steps_each})

    def _validation(self, t: int, mean: float) -> float:
        key = layout.validation(t, 0)
        losses = [AnswerLoss(i, 100 * (mean + self.random.gauss(0, 0.5)), 100) for i in range(NUM_VALIDATION)]
        outputs = self._rows(key.removesuffix(".json") + ".parquet", AnswerLoss, losses)
        self._manifest(key, "validate", outputs, {"val_loss": mean})
        return mean

    def _ids(self, lengths: tuple[int, int]) -> list[int]:
        return self.random.choices(range(*VOCABULARY), k=self.random.randint(*lengths))

    def _rows(self, key: str, kind: Any, rows: list[Any]) -> dict[str, FileDigest]:
        with self.run.staged(key) as staged:
            write_rows(staged.path, kind, rows)
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
            started = time.monotonic()
            page = build_page(large.run).encode()
            sys.stdout.write(f"built in {time.monotonic() - started:.1f} s, {len(page) / 1e6:.2f} MB\n")
        file = Path(folder) / "index.html"
        file.write_bytes(page)
        for _ in range(3):
            found = open_in_browser(file)
            sys.stdout.write(f"opened in {found['opened_s']:.2f} s, searched in {found['search_s']:.3f} s\n")


if __name__ == "__main__":
    main()
