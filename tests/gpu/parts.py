"""The parts of `measure.py`: each gives its checks and figures."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch

from gpu.bench import (
    EOS,
    SHAPES,
    Bench,
    Finding,
    Shape,
    Trainer,
    kernels,
    llama,
    pairs_of,
    set_layout,
    settings_of,
    small,
)
from spin_components.algorithm.attention.kernels import FLASH, VARLEN
from spin_components.algorithm.logprobs import answer_logprobs
from spin_components.algorithm.loss import STEP_ZERO_LOSS, STEP_ZERO_TOLERANCE
from spin_components.algorithm.packing import Prompted
from spin_components.data.shards import Pair
from spin_components.model.compute import Compute
from spin_components.model.scoring import all_answers
from spin_components.settings.generation import GenerationSettings
from spin_components.settings.run import ModelSettings
from support import bounds
from support.chat_tokenizers import byte_level
from support.flops import of_training
from support.warm_spin import SPIN


def device(bench: Bench) -> Iterator[Finding]:
    """The rate of bf16 matrix products, and the versions."""
    size = bench.shape.matrix
    if bench.device.type == "cuda":
        properties = torch.cuda.get_device_properties(bench.device)
        yield Finding("device", "GPU", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    versions = [f"torch {torch.__version__}", f"CUDA {torch.version.cuda}"]
    installed = importlib.metadata.packages_distributions()
    for name in ("transformers", "deepspeed", "vllm"):  # vLLM's builds for CPUs have another distribution's name
        version = importlib.metadata.version(installed[name][0]) if name in installed else "not installed"
        versions += [f"{name} {version}"]
    yield Finding("device", "versions", ", ".join(versions))
    yield Finding("device", "bf16 matrix products", f"{bf16_rate(bench, size) / 1e12:.4g} TFLOP/s at {size}")


def bf16_rate(bench: Bench, size: int) -> float:
    """Operations a second of a product of square bf16 matrices."""
    left = torch.randn(size, size, device=bench.device, dtype=torch.bfloat16)
    right = torch.randn(size, size, device=bench.device, dtype=torch.bfloat16)
    return 2 * size**3 / bench.timed(lambda: left @ right, rounds=5)


def parity(bench: Bench) -> Iterator[Finding]:
    """Log-probabilities and gradients, against float64 on the CPU without padding or packing.

    In float32 in both layouts, and with each kernel that computes in it, within what rounding may do. In bf16 with each
    kernel, the gradients no further from float64 than twice those of the padded layout in bf16, and the
    log-probabilities, which are few and scatter, than eight times.
    """
    shape = small(bench.shape)
    stock, groups = llama(shape), all_answers(pairs_of(shape, 4))
    longest = max(len(answer) for _, answers in groups for answer in answers)
    num_tokens = sum(len(answer) for _, answers in groups for answer in answers)
    weights = [(-1.0) ** i * (1 + i / 8) for i in range(2 * len(groups))]
    expected, gradients = _in_float64(stock, groups, weights)
    limits = bounds.of_logprob(stock, longest), bounds.of_gradients(stock, gradients, weights, num_tokens)
    names = list(kernels(bench.device))
    in_16_bits = [VARLEN, FLASH] if bench.device.type == "cuda" else []
    for layout in ("aligned", "packed", *(name for name in names if name not in in_16_bits)):
        found = _computed(bench, shape, layout, "float32", groups, weights)
        if isinstance(found, str):
            yield Finding("parity", f"{layout} log-probabilities", found, is_right=False)
            continue
        apart = float((found[0] - expected).abs().max())
        value = f"{apart:.2g} nats from float64, at most {limits[0]:.2g}"
        yield Finding("parity", f"{layout} log-probabilities", value, is_right=apart <= limits[0])
        apart = max(float((found[1][name] - gradients[name]).abs().max()) for name in gradients)
        value = f"{apart:.2g} from float64, at most {limits[1]:.2g}"
        yield Finding("parity", f"{layout} gradients", value, is_right=apart <= limits[1])
    most = (0.0, 0.0)
    for layout in ("aligned", *names):
        found = _computed(bench, shape, layout, "bf16", groups, weights)
        if isinstance(found, str):
            yield Finding("parity", f"{layout} bf16", found, is_right=False)
            continue
        apart = float((found[0] - expected).norm() / expected.norm())
        moved = sum(float((found[1][name] - gradients[name]).norm()) ** 2 for name in gradients) ** 0.5
        apart_back = moved / sum(float(gradients[name].norm()) ** 2 for name in gradients) ** 0.5
        most = most if any(most) else (8 * apart, 2 * apart_back)
        value = f"{apart:.1e} and {apart_back:.1e} from float64, relative, at most {most[0]:.1e} and {most[1]:.1e}"
        yield Finding("parity", f"{layout} bf16", value, is_right=apart <= most[0] and apart_back <= most[1])


def _computed(
    bench: Bench, shape: Shape, layout: str, precision: Literal["float32", "bf16"], groups: list[Prompted], weights: Any
) -> tuple[torch.Tensor, dict[str, torch.Tensor]] | str:
    """Log-probabilities in a layout and the gradients of their weighted sum, in float64; or why there are none."""
    model, compute = llama(shape).to(bench.device), Compute(bench.device, precision)
    try:
        if reason := set_layout(model, layout, compute):
            return reason
        with compute.autocast():
            found = answer_logprobs(model, groups, bench.device)
        (found * torch.tensor(weights, device=bench.device)).sum().backward()  # type: ignore[no-untyped-call]
    except Exception as error:  # of a compiler or a driver: the other kernels are measured all the same
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    named = {name: p.grad.cpu().double() for name, p in model.named_parameters() if p.grad is not None}
    return found.detach().cpu().double(), named


def _in_float64(
    model: Any, groups: list[Prompted], weights: list[float]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Sums of each answer's log-probabilities, one forward pass each, and the gradients of their weighted sum."""
    double = llama_like(model).double()
    sums = []
    for prompt, answers in groups:
        for answer in answers:
            logits = double(input_ids=torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
            sums.append(logits.log_softmax(-1).gather(-1, torch.tensor(answer)[:, None]).sum())
    stacked = torch.stack(sums)
    (stacked * torch.tensor(weights, dtype=torch.float64)).sum().backward()  # type: ignore[no-untyped-call]
    return stacked.detach(), {name: p.grad for name, p in double.named_parameters() if p.grad is not None}


def llama_like(model: Any) -> Any:
    """A copy of a model."""
    copy = type(model)(model.config)
    copy.load_state_dict(model.state_dict())
    return copy


def training(bench: Bench) -> Iterator[Finding]:
    """Eight updates in each precision; the product itself refuses a first loss that is not ln 2."""
    shape = small(bench.shape)
    for precision in ("float32", "bf16"):
        compute = Compute(bench.device, precision)
        model = llama(shape).to(bench.device)
        set_layout(model, "packed", compute)
        settings = settings_of(bench.folder, shape, precision=precision)
        trainer = Trainer(bench, model, settings, compute, pairs_of(shape, shape.global_batch))
        losses = [trainer.step() for _ in range(8)]
        away = abs(losses[0] - STEP_ZERO_LOSS)
        value = f"first loss {losses[0]:.6f}, {away:.1g} from ln 2; after 8 updates {losses[-1]:.6f}"
        is_right = away <= STEP_ZERO_TOLERANCE[precision] and losses[-1] < losses[0]
        yield Finding("training", f"{precision}", value, is_right=is_right)


def _engine(bench: Bench, folder: Path, new_tokens: int, precision: str) -> tuple[str, Any, float]:
    """The engine that the product chooses for this device, and the seconds until it is ready."""
    from spin_components.engine.engine import Sampling
    from spin_components.engine.open import choose_engine, open_engine

    compute = Compute(bench.device, precision)  # type: ignore[arg-type]
    settings = GenerationSettings(max_new_tokens=new_tokens, batch_size=bench.shape.num_prompts)
    name = choose_engine(settings, compute, bench.shape.num_prompts)
    started = time.monotonic()
    opened = open_engine(name, folder, ModelSettings(base=str(folder)), Sampling(settings, [EOS], 0), compute)
    next(opened.generate([[1, 5, 6]], [1]))
    return name, opened, time.monotonic() - started


def _saved(bench: Bench, shape: Shape, dtype: torch.dtype) -> Path:
    folder = bench.folder / "model"
    llama(shape, dtype=dtype, device=bench.device).save_pretrained(folder)
    byte_level(None, eos_token="<|im_end|>").save_pretrained(folder)
    return folder


def engine(bench: Bench) -> Iterator[Finding]:
    """Sampled answers, scored by the scorer under the same weights."""
    from spin_components.model.scoring import load_scored
    from spin_components.ref_logprob.sampler_check import SAMPLER_TOLERANCE
    from spin_components.ref_logprob.step import score_pairs

    shape = small(bench.shape)
    folder = _saved(bench, shape, torch.float32)
    precision = "bf16" if bench.device.type == "cuda" else "float32"
    name, opened, _ = _engine(bench, folder, 32, precision)
    prompts = [pair.prompt_ids for pair in pairs_of(shape, shape.global_batch)]
    answers = dict(opened.generate(prompts, [32] * len(prompts)))
    opened.close()
    pairs = [
        Pair(i, prompt, answers[i].token_ids, answers[i].token_ids, answers[i].finish_reason)
        for i, prompt in enumerate(prompts)
    ]
    compute = Compute(bench.device, precision)  # type: ignore[arg-type]
    settings = settings_of(folder, shape, precision=precision)
    scores = score_pairs(
        load_scored(folder, settings, compute), pairs, compute, [tuple(range(len(pairs)))], settings.training
    )
    num_tokens = sum(len(answer.token_ids) for answer in answers.values())
    total = sum(abs(answers[i].logprob - score.ref_generated) for i, score in enumerate(scores))
    difference, tolerance = total / num_tokens, SAMPLER_TOLERANCE[name, precision]
    value = f"{name}, {precision}: {difference:.2g} nats a token from the scorer, at most {tolerance:g}"
    yield Finding("engine", "log-probabilities", value, is_right=difference <= tolerance)


def speed(bench: Bench) -> Iterator[Finding]:
    """Scoring and training of a large model in bf16, padded, and packed with each kernel."""
    shape = bench.shape
    peak = bf16_rate(bench, shape.matrix)
    pairs = pairs_of(shape, shape.global_batch)
    num_tokens = sum(len(pair.prompt_ids) + len(pair.actual_ids) + len(pair.generated_ids) for pair in pairs)
    compute = Compute(bench.device, "bf16")
    for layout in ("aligned", *kernels(bench.device)):
        model = llama(shape, device=bench.device)
        if reason := set_layout(model, layout, compute):
            yield Finding("speed", f"{layout} training", reason)
            continue
        billions = sum(p.numel() for p in model.parameters()) / 1e9
        flops = of_training(model, pairs)
        settings = settings_of(bench.folder, shape, precision="bf16", gradient_checkpointing=True)
        trainer = Trainer(bench, model, settings, compute, pairs)
        bench.peak_gib()
        seconds = bench.timed(trainer.step)
        yield Finding(
            "speed",
            f"{layout} training",
            f"{billions:.3g} B parameters, {num_tokens / seconds:.4g} tokens/s, {flops / seconds / peak:.1%} of the "
            f"bf16 rate, {bench.peak_gib():.1f} GiB",
        )
        seconds = bench.timed(trainer.score)
        value = f"{num_tokens / seconds:.4g} tokens/s, {flops / 3 / seconds / peak:.1%}, {bench.peak_gib():.1f} GiB"
        yield Finding("speed", f"{layout} scoring", value)
        del trainer, model
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()


def generation(bench: Bench) -> Iterator[Finding]:
    """Sampling from a large model with the engine that the product chooses."""
    shape = bench.shape
    is_gpu = bench.device.type == "cuda"
    folder = _saved(bench, shape, torch.bfloat16 if is_gpu else torch.float32)
    if is_gpu:
        torch.cuda.empty_cache()
    name, opened, ready_s = _engine(bench, folder, shape.new_tokens, "bf16" if is_gpu else "float32")
    yield Finding("generation", "start", f"{name} ready after {ready_s:.1f} s")
    prompts = [pair.prompt_ids for pair in pairs_of(shape, shape.num_prompts)]
    started = time.monotonic()
    answers = dict(opened.generate(prompts, [shape.new_tokens] * len(prompts)))
    seconds = time.monotonic() - started
    num_tokens = sum(len(answer.token_ids) for answer in answers.values())
    opened.close()
    yield Finding("generation", "speed", f"{num_tokens / seconds:.4g} tokens/s, {len(answers)} answers")


def run(bench: Bench) -> Iterator[Finding]:
    """The whole loop through the command line."""
    if missing := [name for name in ("kfp", "rich", "minio") if not importlib.util.find_spec(name)]:
        yield Finding("run", "left out", f"not installed: {', '.join(missing)}")
        return
    is_gpu = bench.device.type == "cuda"
    backend = "deepspeed" if is_gpu and importlib.util.find_spec("deepspeed") else "torch"
    uri = bench.folder / "run"
    overrides = [f"training.backend={backend}", f"training.precision={'bf16' if is_gpu else 'float32'}"]
    overrides += [f"hardware.device={bench.device.type}", f"generation.engine={'auto' if is_gpu else 'transformers'}"]
    if bench.shape is SHAPES["tiny"]:
        overrides += ["spin.max_iterations=1", "spin.max_epochs=1", "data.max_train_records=8"]
        overrides += ["data.validation_size=2", "generation.max_new_tokens=4", "validation.num_samples=0"]
    started = time.monotonic()
    options = [f"--set={override}" for override in overrides]
    done = subprocess.run(
        [*SPIN, "run", "--config", "tiny", "--run-uri", str(uri), *options],
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.monotonic() - started
    if done.returncode:
        tail = (done.stdout + done.stderr).strip().splitlines()[-1:]
        yield Finding("run", backend, f"ended with {done.returncode}: {' '.join(tail)}", is_right=False)
        return
    output = subprocess.run([*SPIN, "status", str(uri), "--json"], capture_output=True, text=True, check=True)
    state = json.loads(output.stdout)["state"]
    yield Finding("run", backend, f"{state} after {seconds:.0f} s", is_right=state == "done")


PARTS: dict[str, Callable[[Bench], Iterator[Finding]]] = {
    "device": device,
    "parity": parity,
    "training": training,
    "engine": engine,
    "speed": speed,
    "generation": generation,
    "run": run,
}
