"""Checks and measures the product on one GPU: parity, training in bf16, vLLM, speed with a billion parameters, a run.

    python tests/gpu/measure.py [--size full|tiny] [--device cuda|cpu] [--limit 480] [--parts NAME ...] [--json FILE]

`make gpu` calls it, with the Python that PYTHON names. It needs no network and no files: the models are made on the
spot, with random weights. Each part is a process of its own, which is ended where the time is up. Printed: a line for
each check and figure; the exit code is 1 where a check fails, or a part has not ended.

- `device`: rate of bf16 matrix products, to which the shares below refer.
- `parity`: log-probabilities and gradients in both batch layouts, against stock `transformers` on the CPU in float64.
- `training`: eight updates in float32 and bf16; the first loss is ln 2, the last is lower.
- `engine`: answers of the engine, whose log-probabilities the scorer must give too (`SAMPLER_TOLERANCE`).
- `speed`: scoring and training at 1.3 billion parameters, in both layouts: tokens a second, share of the bf16 rate,
  peak memory. Prompts of 64 to 256 tokens, answers of 64 to 512.
- `generation`: tokens a second of the engine at 1.3 billion parameters, and the time until it is ready.
- `run`: the configuration `tiny` through the command line, in bf16 with DeepSpeed where it is installed.

`--size tiny` has the same parts with small shapes; it is what the test suite runs on a CPU.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import multiprocessing
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from spin_components.algorithm.batching import micro_batches
from spin_components.algorithm.loss import STEP_ZERO_LOSS, STEP_ZERO_TOLERANCE, Objective
from spin_components.algorithm.packing import Prompted
from spin_components.data.pair_counts import PairCounts
from spin_components.data.shards import Pair
from spin_components.model.compute import Compute
from spin_components.settings.generation import GenerationSettings
from spin_components.settings.run import ModelSettings
from spin_components.settings.settings import Settings
from support import bounds
from support.chat_tokenizers import byte_level
from support.flops import of_training

EOS = 2


@dataclass(frozen=True, slots=True)
class Finding:
    """A check or a figure.

    Attributes:
        part: that it belongs to.
        what: is checked or measured.
        value: as printed.
        is_right: None for a figure.
    """

    part: str
    what: str
    value: str
    is_right: bool | None = None


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of the measured model and pairs."""

    matrix: int
    layers: int
    hidden: int
    inner: int
    heads: int
    keys: int
    vocabulary: int
    prompts: tuple[int, int]
    answers: tuple[int, int]
    micro_batch: int
    global_batch: int
    num_prompts: int
    new_tokens: int


SHAPES = {
    # 1.34 billion parameters, with the proportions of Llama
    "full": Shape(8192, 24, 2048, 5632, 16, 8, 32000, (64, 256), (64, 512), 8, 16, 256, 256),
    "tiny": Shape(128, 2, 32, 64, 4, 2, 320, (4, 8), (4, 8), 2, 4, 4, 8),
}


@dataclass(frozen=True, slots=True)
class Bench:
    """What a part runs with."""

    device: torch.device
    shape: Shape
    folder: Path

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def timed(self, call: Callable[[], object], rounds: int = 3) -> float:
        """Median time of a call in seconds, after one that does not count."""
        seconds = []
        for _ in range(1 + rounds):
            self.synchronize()
            started = time.perf_counter()
            call()
            self.synchronize()
            seconds.append(time.perf_counter() - started)
        return statistics.median(seconds[1:])

    def peak_gib(self) -> float:
        """Peak of the device's memory since it was last asked for, in GiB; 0 on a CPU."""
        if self.device.type != "cuda":
            return 0.0
        peak = torch.cuda.max_memory_allocated() / 2**30
        torch.cuda.reset_peak_memory_stats()
        return peak


def llama(shape: Shape, *, dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> Any:
    """A Llama with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.keys,
        max_position_embeddings=2048,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=EOS,
    )
    torch.manual_seed(0)
    with device or torch.device("cpu"):
        return LlamaForCausalLM(config).to(dtype)


def small(shape: Shape) -> Shape:
    """Sizes for checks against float64 on the CPU."""
    if shape.hidden <= 256:
        return shape
    wide = replace(shape, layers=4, hidden=256, inner=512, heads=8, keys=4, vocabulary=2048)
    return replace(wide, prompts=(8, 48), answers=(8, 64))


def pairs_of(shape: Shape, num: int) -> list[Pair]:
    """Pairs of random tokens with lengths from the shape's ranges."""
    generator = random.Random(0)

    def ids(limits: tuple[int, int]) -> list[int]:
        return [generator.randrange(3, shape.vocabulary) for _ in range(generator.randint(*limits))]

    return [Pair(i, ids(shape.prompts), ids(shape.answers), ids(shape.answers), "length") for i in range(num)]


def settings_of(folder: Path, shape: Shape, **training: Any) -> Settings:
    """Settings of training on the measured pairs."""
    sizes = {"global_batch_size": shape.global_batch, "micro_batch_size": shape.micro_batch}
    sections = {"model": {"base": str(folder)}, "data": {"train": "-"}, "training": sizes | training}
    return Settings.model_validate(sections)


def set_layout(model: Any, layout: str, device: torch.device) -> str:
    """Switch a model to a batch layout; returns why it cannot be packed, or an empty string."""
    from spin_components.algorithm.head import answer_head
    from spin_components.model.scoring import enable_packed_attention

    answer_head(model)
    return enable_packed_attention(model, device) if layout == "packed" else ""


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
    """Log-probabilities and gradients in both layouts, against float64 on the CPU without padding or packing."""
    from spin_components.algorithm.logprobs import answer_logprobs
    from spin_components.model.scoring import both_answers

    shape = small(bench.shape)
    stock = llama(shape)
    pairs = pairs_of(shape, 4)
    groups = both_answers(pairs)
    longest = max(len(answer) for _, answers in groups for answer in answers)
    weights = [(-1.0) ** i * (1 + i / 8) for i in range(2 * len(pairs))]
    expected, gradients = _in_float64(stock, groups, weights)
    for layout in ("aligned", "packed"):
        model = llama(shape).to(bench.device)
        if reason := set_layout(model, layout, bench.device):
            yield Finding("parity", f"{layout} log-probabilities", reason, is_right=False)
            continue
        found = answer_logprobs(model, groups, bench.device)
        difference = float((found.detach().cpu().double() - expected).abs().max())
        bound = bounds.of_logprob(stock, longest)
        value = f"{difference:.2g} nats from float64, at most {bound:.2g}"
        yield Finding("parity", f"{layout} log-probabilities", value, is_right=difference <= bound)
        (found * torch.tensor(weights, device=bench.device)).sum().backward()  # type: ignore[no-untyped-call]
        named = {name: p.grad.cpu().double() for name, p in model.named_parameters() if p.grad is not None}
        difference = max(float((named[name] - gradients[name]).abs().max()) for name in gradients)
        num_tokens = sum(len(answer) for _, answers in groups for answer in answers)
        bound = bounds.of_gradients(stock, gradients, weights, num_tokens)
        value = f"{difference:.2g} from float64, at most {bound:.2g}"
        yield Finding("parity", f"{layout} gradients", value, is_right=difference <= bound)


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


@dataclass
class Trainer:
    """A model in training on fixed pairs, which are scored under it first."""

    bench: Bench
    model: Any
    settings: Settings
    compute: Compute
    pairs: list[Pair]

    def __post_init__(self) -> None:
        from spin_components.record.pairs import ScoredPairs
        from spin_components.train_epoch.torch_backend import TorchBackend

        scores = self.score()
        self.batch = tuple(range(len(self.pairs)))
        self.data = ScoredPairs(self.pairs, scores, [self.batch], PairCounts())
        if self.settings.training.gradient_checkpointing:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.backend = TorchBackend(self.model.train(), self.settings.training, self.compute)
        self.num_steps = 0

    def score(self) -> Any:
        """Score the pairs under the model, as ref-logprob does."""
        from spin_components.ref_logprob.step import score_pairs

        batches = [tuple(range(len(self.pairs)))]
        return score_pairs(self.model.eval(), self.pairs, self.compute, batches, self.settings.training)

    def step(self) -> float:
        """Make one update on all pairs; returns the loss before it."""
        from spin_components.train_epoch.train_step import train_single_step

        training = self.settings.training
        micro = micro_batches(
            self.batch,
            [pair.num_tokens for pair in self.pairs],
            micro_batch_size=training.micro_batch_size,
            rank=0,
            ranks=1,
            num=training.global_batch_size // training.micro_batch_size,
        )
        result = train_single_step(
            self.backend,
            self.data,
            micro,
            batch=self.batch,
            objective=Objective(0.1),
            lr=1e-4,
            is_step_zero=self.num_steps == 0,
            where=f"step {self.num_steps}",
        )
        self.num_steps += 1
        return result.metrics["loss"]


def training(bench: Bench) -> Iterator[Finding]:
    """Eight updates in each precision; the product itself refuses a first loss that is not ln 2."""
    shape = small(bench.shape)
    for precision in ("float32", "bf16"):
        compute = Compute(bench.device, precision)
        model = llama(shape).to(bench.device)
        set_layout(model, "aligned", bench.device)
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
    """Scoring and training of a large model in bf16, in both layouts."""
    shape = bench.shape
    peak = bf16_rate(bench, shape.matrix)
    pairs = pairs_of(shape, shape.global_batch)
    num_tokens = sum(len(pair.prompt_ids) + len(pair.actual_ids) + len(pair.generated_ids) for pair in pairs)
    for layout in ("aligned", "packed"):
        model = llama(shape, device=bench.device)
        if reason := set_layout(model, layout, bench.device):
            yield Finding("speed", f"{layout} training", reason)
            continue
        billions = sum(p.numel() for p in model.parameters()) / 1e9
        flops = of_training(model, pairs)
        settings = settings_of(bench.folder, shape, precision="bf16", gradient_checkpointing=True)
        trainer = Trainer(bench, model, settings, Compute(bench.device, "bf16"), pairs)
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
    command = [sys.executable, "-m", "spin_pipeline.cli"]
    overrides = [f"training.backend={backend}", f"training.precision={'bf16' if is_gpu else 'float32'}"]
    overrides += [f"hardware.device={bench.device.type}", f"generation.engine={'auto' if is_gpu else 'transformers'}"]
    if bench.shape is SHAPES["tiny"]:
        overrides += ["spin.max_iterations=1", "spin.max_epochs=1", "data.max_train_records=8"]
        overrides += ["data.validation_size=2", "generation.max_new_tokens=4", "validation.num_samples=0"]
    started = time.monotonic()
    options = [f"--set={override}" for override in overrides]
    done = subprocess.run(
        [*command, "run", "--config", "tiny", "--run-uri", str(uri), *options],
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.monotonic() - started
    if done.returncode:
        tail = (done.stdout + done.stderr).strip().splitlines()[-1:]
        yield Finding("run", backend, f"ended with {done.returncode}: {' '.join(tail)}", is_right=False)
        return
    output = subprocess.run([*command, "status", str(uri), "--json"], capture_output=True, text=True, check=True)
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
            sys.stdout.write(f"{mark} {finding.part:<12}{finding.what:<28}{finding.value}\n")
            sys.stdout.flush()
    if options.json:
        options.json.write_text(json.dumps([asdict(finding) for finding in findings], indent=2) + "\n", "utf-8")
    return int(any(finding.is_right is False for finding in findings))


if __name__ == "__main__":
    sys.exit(main())
