"""Generation speed and memory against `transformers.generate` called plainly, and against bare vLLM.

    python tests/benchmarks/generation.py [--rounds 3] [--prompts 128] [--new-tokens 192] [--batch 64] [--block 0]
        [--json FILE]

The demo model answers real prompts, the questions of `builtin:stdlib-docstrings`, at temperature 1 in float32; answers
are as long as they come. Each contestant runs in a process of its own, in turn, and is warmed up before the clock
starts: loading and vLLM's start do not count. Printed: tokens a second (medians over rounds; a token counts up to its
answer's EOS), what ours is of its peer's, and peak memory, of vLLM with its engine's process.

- `plain`: `model.generate` on batches in the given order, left-padded, `sdpa`, as `from_pretrained` gives it.
- `ours`: the `transformers` engine with as many rows.
- `vllm`: `LLM.generate` on all prompts at once, with vLLM's own `max_num_seqs`.
- `ours-vllm`: the `vllm` engine.

With `--block` ours answers so many prompts at a time (`generation.block_size`).

What was tried for the `transformers` engine, on 2 cores of an AMD EPYC (AVX2, no bf16), in float32:

- Attention of 64 rows over 128 columns, a layer: 21 ms by joining the cache and repeating keys for each head, as eager
  attention does; 1.8 ms by two batched products over preallocated rows, heads that share keys together (taken);
  2.1 ms by `scaled_dot_product_attention` over the same rows.
- A draw for 64 rows of 49152 tokens: 91 ms by `softmax` and `multinomial`, 84 of them for random numbers; about 6 ms by
  inverting the distribution function with one random number a row (taken).
- A finished row's place taken by the next prompt, whose tokens are computed together with the others' next ones
  (taken). A product's time grows with its rows from 16 on, so rows that go on beyond their EOS are paid for in full.
- `(W x^T)^T` for `x W^T`: 1.3 to 1.8 times as fast at 32 to 64 rows on two threads when measured alone, equal on one;
  weights packed beforehand by oneDNN or MKL: no faster on one thread. Not taken.
- Where the time goes now, 24 rows on one thread: matrix products 80 % (50 GFLOP/s a core at 32 rows, 65 at 128),
  attention 4 %, choosing tokens 4 %.

For the `vllm` engine, 48 answers of 16 tokens on one core, four times in turn on one engine: `LLM.generate` 14.7 s,
with log-probabilities of the sampled tokens 13.6 s, our loop with them 13.8 s: no difference beyond the spread.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from spin_components.model.compute import Compute, set_threads
from spin_components.settings.attempt import HardwareSettings
from spin_components.settings.generation import GenerationSettings
from spin_components.settings.run import ModelSettings

PEERS = {"plain": "plain", "ours": "plain", "vllm": "vllm", "ours-vllm": "vllm"}
EOS = 2
COMPUTE = Compute(torch.device("cpu"), "float32")
KV_CACHE_GIB = 2

Prompts = list[list[int]]
Answering = Callable[[Prompts, int], list[list[int]]]


def make_prompts(folder: Path, num: int) -> None:
    """The demo model, and questions as token ids."""
    from spin_components.data.builtin import docstrings, make_smollm2
    from spin_components.data.formats import Conversation, Message
    from spin_components.data.rendering import Renderer
    from spin_components.data.turn_ends import find_eos_ids
    from spin_components.model.folder import load_tokenizer

    make_smollm2(folder / "model")
    tokenizer = load_tokenizer(folder / "model", ModelSettings(base=str(folder / "model")))
    renderer = Renderer(tokenizer, find_eos_ids(tokenizer, EOS), max_length=512, max_prompt_length=256)
    rendered = [renderer.render(Conversation((Message("user", ask),), text)) for ask, text in docstrings(limit=num)]
    (folder / "prompts.json").write_text(json.dumps([each.prompt_ids for each in rendered]), "ascii")


def plain(options: argparse.Namespace) -> Answering:
    """What transformers' documentation says to do."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(options.folder / "model", dtype=torch.float32).eval()
    torch.manual_seed(options.seed)

    def answer(prompts: Prompts, limit: int) -> list[list[int]]:
        answers = []
        for start in range(0, len(prompts), options.batch):
            part = prompts[start : start + options.batch]
            longest = max(map(len, part))
            ids = torch.tensor([[EOS] * (longest - len(prompt)) + prompt for prompt in part])
            mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in part])
            with torch.inference_mode():
                output = model.generate(
                    input_ids=ids,
                    attention_mask=mask,
                    max_new_tokens=limit,
                    do_sample=True,
                    temperature=1.0,
                    top_k=0,
                    top_p=1.0,
                    eos_token_id=EOS,
                    pad_token_id=EOS,
                )
            answers += output[:, longest:].tolist()
        return answers

    return answer


def bare_vllm(options: argparse.Namespace) -> Answering:
    """vLLM's own quick start, but for the precision and what a CPU needs."""
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(KV_CACHE_GIB)
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=str(options.folder / "model"),
        dtype="float32",
        seed=options.seed,
        max_model_len=512,
        enforce_eager=True,
        generation_config="vllm",
    )

    def answer(prompts: Prompts, limit: int) -> list[list[int]]:
        asked = SamplingParams(temperature=1.0, max_tokens=limit, stop_token_ids=[EOS])
        outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], asked, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    return answer


def engine(name: str, options: argparse.Namespace, prompts: Prompts) -> Answering:
    """The product's own."""
    from spin_components.engine.engine import Sampling
    from spin_components.engine.open import open_engine

    settings = GenerationSettings(
        max_new_tokens=1024, batch_size=options.batch, block_size=options.block, kv_cache_gib=KV_CACHE_GIB
    )
    model = ModelSettings(base=str(options.folder / "model"))
    opened = open_engine(name, options.folder / "model", model, Sampling(settings, [EOS], options.seed), COMPUTE)
    if name == "vllm":  # it starts for a number and lengths of prompts; what it then sees must not be in its cache
        first = opened.generate([prompt[::-1] for prompt in prompts], [options.new_tokens] * len(prompts))
        next(first)
        first.close()  # type: ignore[attr-defined]

    def answer(prompts: Prompts, limit: int) -> list[list[int]]:
        answers = []
        for block in settings.blocks(len(prompts)):
            part = [prompts[number] for number in block]
            found = dict(opened.generate(part, [limit] * len(part), numbers=block))
            answers += [found[place].token_ids for place in range(len(part))]
        return answers

    return answer


def measure(kind: str, options: argparse.Namespace) -> dict[str, Any]:
    """One contestant, in this process."""
    set_threads(HardwareSettings())
    prompts: Prompts = json.loads((options.folder / "prompts.json").read_text("ascii"))
    if kind in ("plain", "vllm"):
        answering = plain(options) if kind == "plain" else bare_vllm(options)
    else:
        answering = engine("vllm" if kind == "ours-vllm" else "transformers", options, prompts)
    answering(prompts[:4], 4)
    started = time.monotonic()
    answers = answering(prompts, options.new_tokens)
    seconds = time.monotonic() - started
    lengths = [answer.index(EOS) + 1 if EOS in answer else len(answer) for answer in answers]
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if "vllm" in kind:
        peak_kib += _largest_child_kib()
    return {"seconds": seconds, "lengths": lengths, "peak_mib": peak_kib / 1024}


def _largest_child_kib() -> int:
    peaks = [0]
    for children in Path("/proc/self/task").glob("*/children"):
        for child in children.read_text("ascii").split():
            status = Path("/proc", child, "status").read_text("ascii").splitlines()
            peaks += [int(line.split()[1]) for line in status if line.startswith("VmHWM")]
    return max(peaks)


def main() -> None:
    """Alternate, then print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=192)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--block", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", choices=list(PEERS), help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        sys.stdout.write("\nRESULT " + json.dumps(measure(options.one, options)) + "\n")
        return
    with tempfile.TemporaryDirectory() as name:
        folder = options.folder or Path(name)
        if not (folder / "prompts.json").exists():
            make_prompts(folder, options.prompts)
        found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in options.kinds}
        for seed in range(options.rounds):
            for kind in options.kinds:
                found[kind].append(_apart(kind, folder, seed, options))
        report(found, options.json)


def _apart(kind: str, folder: Path, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", kind, "--folder", str(folder), "--seed", str(seed)]
    command += ["--new-tokens", str(options.new_tokens), "--batch", str(options.batch), "--block", str(options.block)]
    variables = {**os.environ, "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=variables)
    result: dict[str, Any] = json.loads(output.stdout.rpartition("RESULT ")[2])
    sys.stderr.write(f"{kind}: {sum(result['lengths'])} tokens in {result['seconds']:.1f} s\n")
    return result


def report(found: dict[str, list[dict[str, Any]]], path: Path | None) -> None:
    """Medians, and ratios of ours to its peer."""
    speed = {
        kind: statistics.median(sum(each["lengths"]) / each["seconds"] for each in rounds)
        for kind, rounds in found.items()
    }
    peak = {kind: statistics.median(each["peak_mib"] for each in rounds) for kind, rounds in found.items()}
    lines = [f"{'':12}{'tokens/s':>10}{'of peer':>9}{'peak MiB':>10}{'of peer':>9}{'tokens an answer':>22}"]
    for kind, rounds in found.items():
        peer = PEERS[kind] if PEERS[kind] in found else kind
        lengths = sorted(length for each in rounds for length in each["lengths"])
        spread = f"{lengths[0]} … {statistics.median(lengths):.0f} … {lengths[-1]}"
        ratios = speed[kind] / speed[peer], peak[kind] / peak[peer]
        lines.append(f"{kind:12}{speed[kind]:10.1f}{ratios[0]:8.2f}x{peak[kind]:10.0f}{ratios[1]:8.2f}x{spread:>22}")
    sys.stdout.write("\n".join(lines) + "\n")
    if path:
        path.write_text(json.dumps({"tokens_per_s": speed, "peak_mib": peak, "found": found}))


if __name__ == "__main__":
    main()
