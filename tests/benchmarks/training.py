"""Training speed and memory against TRL's `DPOTrainer`, whose sigmoid loss is SPIN's, on the same pairs.

    pip install -c constraints.txt trl
    python tests/benchmarks/training.py [--rounds 3] [--pairs 48] [--json FILE]

The demo model answers real prompts; ours and TRL then train on those pairs, at the same global batch, in float32 with
the same optimizer, each in a process of its own, in turn. TRL runs at its default per-device batch and without the
gradient checkpointing that it has on by default. Printed: pairs a second (medians over rounds, the first step left
out), peak memory, the largest difference between losses, and the share of the machine's own matrix-product rate.
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
from typing import Any

import torch

from spin_components.algorithm.order import MicroBatch, derive_seed, form_batches, micro_batches
from spin_components.attempt_settings import HardwareSettings
from spin_components.data.pair_counts import PairCounts
from spin_components.data.shards import Pair, Score, read_rows, write_rows
from spin_components.device import Compute, set_threads
from spin_components.settings import GenerationSettings, ModelSettings, Settings, TrainingSettings

KINDS = ("ours", "ours-aligned", "trl", "trl-online")
GLOBAL_BATCH, MICRO_BATCH, TRL_MICRO_BATCH, BETA, LR = 16, 4, 8, 0.1, 1e-5
COMPUTE = Compute(torch.device("cpu"), "float32")


def make_pairs(folder: Path, num: int) -> None:
    """The demo model, and pairs of human answers and its own."""
    from spin_components.data.formats import Conversation, Message
    from spin_components.data.rendering import Renderer, find_eos_ids
    from spin_components.generate.engine import Sampling
    from spin_components.generate.transformers_engine import TransformersEngine
    from spin_components.prepare.builtin import docstrings, make_smollm2
    from spin_components.tokenizer import load_tokenizer

    make_smollm2(folder / "model")
    settings = ModelSettings(base=str(folder / "model"))
    tokenizer = load_tokenizer(folder / "model", settings)
    renderer = Renderer(tokenizer, find_eos_ids(tokenizer, 2), max_length=512, max_prompt_length=256)
    texts = list(docstrings(limit=num))
    rendered = [renderer.render(Conversation((Message("user", ask),), answer)) for ask, answer in texts]
    sampling = Sampling(GenerationSettings(max_new_tokens=128), [2], 0)
    engine = TransformersEngine(folder / "model", settings, sampling, COMPUTE)
    answers = dict(engine.generate([each.prompt_ids for each in rendered], [128] * num))
    pairs = [
        Pair(place, each.prompt_ids, each.actual_ids, answers[place].token_ids, answers[place].finish_reason)
        for place, each in enumerate(rendered)
    ]
    write_rows(folder / "pairs.parquet", Pair, pairs)


def batches_of(num: int) -> list[tuple[int, ...]]:
    """The global batches, the same for all."""
    return [batch for batch in form_batches(num, GLOBAL_BATCH, derive_seed(0, "bench")) if len(batch) == GLOBAL_BATCH]


def ours(folder: Path, pairs: list[Pair], packing: str) -> dict[str, Any]:
    """Score under the reference, then train: the product's own functions."""
    from spin_components.ref_logprob.step import score_pairs
    from spin_components.scoring import load_scored
    from spin_components.train_epoch.pairs import ScoredPairs
    from spin_components.train_epoch.single_step import train_single_step
    from spin_components.train_epoch.torch_backend import TorchBackend

    training = TrainingSettings(
        global_batch_size=GLOBAL_BATCH, micro_batch_size=MICRO_BATCH, lr=LR, precision="float32", packing=packing
    )
    settings = Settings.model_validate(
        {"model": {"base": str(folder / "model")}, "data": {"train": "-"}, "training": training.model_dump()}
    )
    model = load_scored(folder / "model", settings, COMPUTE)
    batches = batches_of(len(pairs))
    started = time.monotonic()
    scores: list[Score] = score_pairs(model.eval(), pairs, COMPUTE, batches, training)
    score_s = time.monotonic() - started
    data = ScoredPairs(pairs, scores, batches, PairCounts())
    backend = TorchBackend(model.train(), training, COMPUTE)
    lengths = [pair.num_tokens for pair in pairs]
    steps = []
    for number, batch in enumerate(batches):
        share: list[MicroBatch] = micro_batches(
            batch, lengths, micro_batch_size=MICRO_BATCH, rank=0, ranks=1, num=GLOBAL_BATCH // MICRO_BATCH
        )
        started = time.monotonic()
        metrics, _ = train_single_step(
            backend, data, share, batch=batch, beta=BETA, lr=LR, is_step_zero=number == 0, where="benchmark"
        )
        steps.append((time.monotonic() - started, metrics["loss"]))
    num_body = sum(p.numel() for p in model.base_model.parameters()) - model.get_input_embeddings().weight.numel()
    return {"steps": steps, "score_s": score_s, "flops": [_flops(pairs, batch, model, num_body) for batch in batches]}


def _flops(pairs: list[Pair], batch: tuple[int, ...], model: Any, num_body: int) -> float:
    """Of one step at the least: 6 a weight and token, logits for answers only, attention to half the square."""
    config = model.config
    total = 0.0
    for pair in (pairs[place] for place in batch):
        prompt, answers = len(pair.prompt_ids), (len(pair.actual_ids), len(pair.generated_ids))
        seen = prompt**2 / 2 + sum(answer * (prompt + answer / 2) for answer in answers)
        total += 6 * num_body * (prompt + sum(answers))
        total += 6 * config.vocab_size * config.hidden_size * sum(answers)
        total += 12 * config.num_hidden_layers * config.hidden_size * seen
    return total


def trl(folder: Path, pairs: list[Pair], *, precompute: bool) -> dict[str, Any]:
    """TRL's trainer on the same token ids in the same order."""
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    steps: list[tuple[float, float]] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self.started = time.monotonic()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            steps.append((time.monotonic() - self.started, 0.0))

    class Prepared(DPOTrainer):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

        def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
            return SequentialSampler(self.train_dataset)

    order = [place for batch in batches_of(len(pairs)) for place in batch]
    rows = [
        {"prompt_ids": pair.prompt_ids, "chosen_ids": pair.actual_ids, "rejected_ids": pair.generated_ids}
        for pair in (pairs[place] for place in order)
    ]
    with tempfile.TemporaryDirectory() as output:
        trainer = Prepared(
            model=AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32),
            args=DPOConfig(
                output_dir=output,
                per_device_train_batch_size=TRL_MICRO_BATCH,
                gradient_accumulation_steps=GLOBAL_BATCH // TRL_MICRO_BATCH,
                num_train_epochs=1,
                learning_rate=LR,
                lr_scheduler_type="constant",
                weight_decay=0.0,
                max_grad_norm=1.0,
                beta=BETA,
                precompute_ref_log_probs=precompute,
                gradient_checkpointing=False,
                bf16=False,
                use_cpu=True,
                logging_steps=1,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
            ),
            processing_class=AutoTokenizer.from_pretrained(folder / "model"),
            train_dataset=Dataset.from_list(rows),
            callbacks=[Clock()],
        )
        trainer.train()
    losses = [float(row["loss"]) for row in trainer.state.log_history if "loss" in row]
    return {"steps": [(seconds, loss) for (seconds, _), loss in zip(steps, losses, strict=True)]}


def measure(kind: str, folder: Path) -> dict[str, Any]:
    """One kind, in this process, with its peak memory beyond what the imports took."""
    set_threads(HardwareSettings())
    pairs = read_rows(folder / "pairs.parquet", Pair)
    if kind.startswith("ours"):
        found = ours(folder, pairs, "off" if kind == "ours-aligned" else "on")
    else:
        found = trl(folder, pairs, precompute=kind == "trl")
    status = Path("/proc/self/status").read_text("ascii").splitlines()
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    return {**found, "peak_mib": peak / 1024}


def machine_rate(width: int = 576, inner: int = 1536, tokens: int = 640) -> float:
    """FLOP/s of float32 matrix products at the demo model's shapes."""
    set_threads(HardwareSettings())
    left, right = torch.randn(tokens, width), torch.randn(width, inner)
    seconds = []
    for _ in range(5):
        started = time.monotonic()
        for _ in range(100):
            left @ right
        seconds.append((time.monotonic() - started) / 100)
    return 2 * tokens * width * inner / statistics.median(seconds)


def main() -> None:
    """Alternate, then print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=48)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        sys.stdout.write("\nRESULT " + json.dumps(measure(options.one, options.folder)) + "\n")
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_pairs(folder, options.pairs)
        rate = machine_rate()
        found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in options.kinds}
        for _ in range(options.rounds):
            for kind in options.kinds:
                command = [sys.executable, __file__, "--one", kind, "--folder", name]
                output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ})
                found[kind].append(json.loads(output.stdout.rpartition("RESULT ")[2]))
        report(found, rate, options.json)


def report(found: dict[str, list[dict[str, Any]]], rate: float, path: Path | None) -> None:
    """Medians, ratios to ours, and what the machine could do."""
    speed = {
        kind: GLOBAL_BATCH / statistics.median(seconds for each in rounds for seconds, _ in each["steps"][1:])
        for kind, rounds in found.items()
    }
    peak = {kind: statistics.median(each["peak_mib"] for each in rounds) for kind, rounds in found.items()}
    losses = {kind: [loss for _, loss in rounds[0]["steps"]] for kind, rounds in found.items()}
    base = losses["ours"]
    lines = [f"{'':14}{'pairs/s':>9}{'ours is':>9}{'peak MiB':>10}{'ours is':>9}{'loss differs':>14}"]
    for kind in found:
        differs = max(abs(one - other) for one, other in zip(base, losses[kind], strict=True))
        ratios = (speed["ours"] / speed[kind], peak["ours"] / peak[kind])
        lines.append(f"{kind:14}{speed[kind]:9.3f}{ratios[0]:8.2f}x{peak[kind]:10.0f}{ratios[1]:8.2f}x{differs:14.1e}")
    first = found["ours"][0]
    seconds = statistics.median(s for each in found["ours"] for s, _ in each["steps"][1:])
    achieved = statistics.mean(first["flops"][1:]) / seconds
    num_scored = GLOBAL_BATCH * len(base)
    lines.append(f"MFU {achieved / rate:.2f}: {achieved / 1e9:.1f} of {rate / 1e9:.1f} GFLOP/s")
    lines.append(f"ref-logprob {num_scored / statistics.median(e['score_s'] for e in found['ours']):.2f} pairs/s")
    sys.stdout.write("\n".join(lines) + "\n")
    if path:
        path.write_text(json.dumps({"speed": speed, "peak_mib": peak, "losses": losses, "rate": rate, "found": found}))


if __name__ == "__main__":
    main()
