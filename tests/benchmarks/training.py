"""Training speed and memory against TRL's `DPOTrainer`, whose sigmoid loss is SPIN's, on the same pairs.

    pip install -c constraints.txt trl
    python tests/benchmarks/training.py [--rounds 3] [--pairs 24] [--ask sources] [--json FILE]

The demo model answers real prompts; ours and TRL then train on those pairs, at the same global batch, in float32 with
the same optimizer, each in a process of its own, in turn. TRL runs at its default per-device batch and without the
gradient checkpointing that it has on by default. Printed: pairs a second (medians over rounds, the first step left
out), peak memory, the largest difference between losses, and the share of the machine's own matrix-product rate.

`--ask names` asks what a function does by its name, as the demo's data does: prompts of 44 tokens, answers of 17 and of
up to 128. `--ask sources` shows the function: prompts of 130 tokens, answers of 61, with long tails.

What was tried, on 2 cores of an AMD EPYC (AVX2), a forward and backward pass of 4 pairs in 757 tokens:

- Freed memory kept by the C library instead of mapped anew for every large tensor: 7.1 s to 5.9 s (taken).
- Packed attention that splits queries, keys and values once instead of slicing them for each answer, whose gradients
  are as large as the batch each: 6.3 s to 5.7 s under the profiler (taken).
- AdamW in one pass (`fused`): an update of 135 million weights 2.0 s to 0.4 s; gradients looked at for what is not
  finite by their norm alone: 0.8 s to 0.04 s (both taken).
- Attention that is told of shared heads (`enable_gqa`) instead of repeated keys: no difference.

Where the time goes now: 78 % in matrix products, at 128 GFLOP/s of the 130 to 170 that the machine gives at these
shapes; 8 % in attention; the rest element by element. TRL computes 1.9 times the tokens for the first kind of question,
2.7 times for the second (each prompt twice, each sequence as long as the longest of eight), so what remains beyond
that is memory, and the rest of the way to more would be arithmetic that nobody can leave out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from pairs import COMPUTE, GLOBAL_BATCH, MICRO_BATCH, batches_of, in_a_process, make_pairs, settings_of, tell

from spin_components.algorithm.batching import MicroBatch, micro_batches
from spin_components.algorithm.loss import Objective
from spin_components.data.pair_counts import PairCounts
from spin_components.data.shards import Pair, read_rows
from spin_components.machine import num_cores
from spin_components.model.compute import set_threads
from spin_components.settings.attempt import HardwareSettings
from support.flops import of_training

KINDS = ("ours", "trl", "trl-online", "ours-aligned", "plain")
TRL_MICRO_BATCH, BETA, LR = 8, 0.1, 1e-5


def ours(folder: Path, pairs: list[Pair], packing: str) -> dict[str, Any]:
    """Score under the reference, then train: the product's own functions."""
    from spin_components.model.scoring import load_scored
    from spin_components.record.pairs import ScoredPairs
    from spin_components.ref_logprob.step import score_pairs
    from spin_components.training.torch_backend import TorchBackend
    from spin_components.training.train_step import train_single_step

    settings = settings_of(folder, lr=LR, packing=packing)
    training = settings.training
    model = load_scored(folder / "model", settings, COMPUTE)
    batches = batches_of(len(pairs))
    started = time.monotonic()
    scores = score_pairs(model.eval(), pairs, COMPUTE, batches, training)
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
            backend,
            data,
            share,
            batch=batch,
            objective=Objective(BETA),
            lr=LR,
            is_step_zero=number == 0,
            where="benchmark",
        )
        steps.append((time.monotonic() - started, metrics["loss"]))
    flops = [of_training(model, [pairs[index] for index in batch]) for batch in batches]
    return {"steps": steps, "score_s": score_s, "flops": flops}


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


def plain(folder: Path, pairs: list[Pair]) -> dict[str, Any]:
    """Reference log-probabilities as one would first write them: padded batches, all logits, log-softmax."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).eval()
    chosen = [pairs[place] for batch in batches_of(len(pairs)) for place in batch]
    sums: dict[int, tuple[float, float]] = {}
    started = time.monotonic()
    for start in range(0, len(chosen), MICRO_BATCH):
        some = chosen[start : start + MICRO_BATCH]
        answers = [pair.actual_ids for pair in some] + [pair.generated_ids for pair in some]
        prompts = [pair.prompt_ids for pair in some] * 2
        longest = max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True))
        ids = torch.zeros(len(answers), longest, dtype=torch.int64)
        attended, counted = torch.zeros_like(ids), torch.zeros(ids.shape, dtype=torch.bool)
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            length = len(prompt) + len(answer)
            ids[row, :length] = torch.tensor(prompt + answer)
            attended[row, :length] = 1
            counted[row, len(prompt) : length] = True
        with torch.inference_mode():
            logprobs = model(input_ids=ids, attention_mask=attended, use_cache=False).logits.log_softmax(-1)
        token = logprobs[:, :-1].gather(-1, ids[:, 1:, None])[..., 0] * counted[:, 1:]
        found = token.sum(-1).view(2, -1).tolist()
        sums |= {pair.index: (actual, generated) for pair, actual, generated in zip(some, *found, strict=True)}
    return {"score_s": time.monotonic() - started, "sums": sums}


def measure(kind: str, folder: Path) -> dict[str, Any]:
    """One kind, in this process."""
    if kind.startswith("ours"):
        set_threads(HardwareSettings())
    else:
        torch.set_num_threads(num_cores())
    pairs = read_rows(folder / "pairs.parquet", Pair)
    if kind == "plain":
        return plain(folder, pairs)
    if kind.startswith("ours"):
        return ours(folder, pairs, "off" if kind == "ours-aligned" else "on")
    return trl(folder, pairs, precompute=kind == "trl")


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
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--ask", choices=("names", "sources"), default="names")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path, help="where the model and the pairs lie, or shall be made")
    parser.add_argument("--one", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        tell(measure(options.one, options.folder))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = options.folder or Path(name)
        if not (folder / "pairs.parquet").exists():
            make_pairs(folder, options.pairs, ask=options.ask)
        rates = [machine_rate()]
        found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in options.kinds}
        for _ in range(options.rounds):
            for kind in options.kinds:
                found[kind].append(in_a_process(__file__, "--one", kind, "--folder", str(folder)))
                sys.stderr.write(f"{kind} {found[kind][-1].get('steps') or found[kind][-1]['score_s']}\n")
            rates.append(machine_rate())
        report(found, statistics.median(rates), options.json)


def report(found: dict[str, list[dict[str, Any]]], rate: float, path: Path | None) -> None:
    """Medians, ratios to ours, and what the machine could do."""
    trained = {kind: rounds for kind, rounds in found.items() if kind != "plain"}
    speed = {
        kind: GLOBAL_BATCH / statistics.median(seconds for each in rounds for seconds, _ in each["steps"][1:])
        for kind, rounds in trained.items()
    }
    peak = {kind: statistics.median(each["peak_mib"] for each in rounds) for kind, rounds in found.items()}
    losses = {kind: [loss for _, loss in rounds[0]["steps"]] for kind, rounds in trained.items()}
    lines = [f"{'training':14}{'pairs/s':>9}{'ours is':>9}{'peak MiB':>10}{'ours is':>9}{'loss differs':>14}"]
    for kind in trained:
        differs = max(abs(one - other) for one, other in zip(losses["ours"], losses[kind], strict=True))
        ratios = (speed["ours"] / speed[kind], peak["ours"] / peak[kind])
        lines.append(f"{kind:14}{speed[kind]:9.3f}{ratios[0]:8.2f}x{peak[kind]:10.0f}{ratios[1]:8.2f}x{differs:14.1e}")
    seconds = statistics.median(s for each in found["ours"] for s, _ in each["steps"][1:])
    achieved = statistics.mean(found["ours"][0]["flops"][1:]) / seconds
    lines.append(f"MFU {achieved / rate:.2f}: {achieved / 1e9:.1f} of {rate / 1e9:.1f} GFLOP/s")
    num_scored = GLOBAL_BATCH * len(losses["ours"])
    score_s = {
        kind: statistics.median(each["score_s"] for each in rounds)
        for kind, rounds in found.items()
        if "score_s" in rounds[0]
    }
    lines.append(f"{'ref-logprob':14}{'pairs/s':>9}{'ours is':>9}")
    for kind, taken in score_s.items():
        lines.append(f"{kind:14}{num_scored / taken:9.3f}{taken / score_s['ours']:8.2f}x")
    sys.stdout.write("\n".join(lines) + "\n")
    if path:
        kept = {"speed": speed, "peak_mib": peak, "losses": losses, "rate": rate, "score_s": score_s, "found": found}
        path.write_text(json.dumps(kept))


if __name__ == "__main__":
    main()
