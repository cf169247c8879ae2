"""`spin-pipeline estimate`: memory and time of each step, and its bottleneck; needs no cluster and no weights."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from spin_components.errors import ModelError
from spin_pipeline.commands.options import add_config, settings_of
from spin_pipeline.watch.console import plain_console

if TYPE_CHECKING:
    from spin_components.memory.duration import DataSize, Duration
    from spin_components.memory.estimate import Estimate
    from spin_components.memory.fit import Shortage
    from spin_components.memory.roofline import Bound
    from spin_components.memory.shape import ModelShape
    from spin_pipeline.deploy.cluster_settings import Configuration

GPU_NAMES = ("a100-80g", "h100-80g", "h200")


def add(commands: Any, exit_codes: str) -> None:
    """Add the command's parser."""
    parser = commands.add_parser(
        "estimate",
        help="estimate the memory of each step, and its time on GPUs",
        epilog=exit_codes,
    )
    add_config(parser)
    parser.add_argument("--model-config", metavar="FILE", help="config.json of the model, if model.base is unreachable")
    parser.add_argument("--gpu", choices=GPU_NAMES, help="estimate for pods with these GPUs; default: for this machine")
    parser.add_argument(
        "--gpus",
        type=_count,
        metavar="N",
        help="GPUs of all pods together; default: those of training",
    )
    parser.add_argument(
        "--prompts", type=_count, metavar="N", help="prompts of an iteration; default: data.max_train_records, or 50000"
    )
    parser.add_argument(
        "--lengths",
        type=_lengths,
        metavar="PROMPT,ANSWER,GENERATED",
        help="mean lengths in tokens; default: a quarter of what the settings allow",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(do=estimate)


def estimate(options: argparse.Namespace) -> int:
    """Print the estimate; returns 1 if a step certainly does not fit into memory."""
    settings = settings_of(options)
    from spin_components.memory.check import estimate_steps
    from spin_components.memory.duration import durations
    from spin_components.memory.fit import shortages
    from spin_components.memory.machines import pod_machine, this_machine
    from spin_components.memory.model_config import find_shape
    from spin_components.memory.roofline import GPUS, bounds
    from spin_components.memory.shape import shape_of_config
    from spin_components.memory.work import Workload, longest_allowed
    from spin_components.memory.zero_stage import resolve_zero_stage

    if options.model_config:
        shape, origin = shape_of_config(_config(options.model_config), what=options.model_config), options.model_config
    else:
        shape, origin = find_shape(settings.model.base, what="model.base")
    gpu = GPUS[options.gpu] if options.gpu else None
    machine = pod_machine(settings, gpu.gpu_bytes) if gpu else this_machine(settings)
    work = resolve_zero_stage(shape, Workload(settings, machine, longest_allowed(settings)))
    estimates, bounding = estimate_steps(shape, work), bounds(shape, work, gpu) if gpu else []
    data, num_gpus = _data_size(settings, options), options.gpus or settings.hardware.world_size
    times = durations(shape, work, gpu, data, num_gpus) if gpu else []
    too_large = shortages(estimates, work)
    code = int(any(shortage.is_certain for shortage in too_large))
    if options.json:
        sys.stdout.write(json.dumps(_as_value(shape, estimates, bounding, times, too_large), indent=2) + "\n")
        return code
    console = plain_console()
    where = f"pods with {gpu.name} GPUs" if gpu else "this machine"
    size = f"{shape.num_parameters / 1e9:.3g} billion parameters"
    if shape.experts:
        size += f", {shape.num_active / 1e9:.3g} billion of them active for a token"
    console.print(f"{size}, by {origin}; on {where}", highlight=False, soft_wrap=True)
    _print(estimates, bounding, too_large, console)
    if times:
        _print_times(times, data, num_gpus, console)
    return code


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"expected a number of 1 or more, found {text!r}")
    return int(text)


def _lengths(text: str) -> tuple[int, int, int]:
    parts = text.split(",")
    if len(parts) != 3:
        raise argparse.ArgumentTypeError(f"expected three numbers, as in 200,300,300; found {text!r}")
    prompt, actual, generated = map(_count, parts)
    return prompt, actual, generated


def _data_size(settings: Configuration, options: argparse.Namespace) -> DataSize:
    """The records of the run, as the options say or the settings let expect."""
    from spin_components.memory.duration import DataSize

    data, new_tokens = settings.data, settings.generation.max_new_tokens
    longest_answer = data.max_length - data.max_prompt_length
    expected = (max(length // 4, 1) for length in (data.max_prompt_length, longest_answer, new_tokens))
    return DataSize(options.prompts or data.max_train_records or 50_000, *(options.lengths or expected))


def _config(path: str) -> dict[str, Any]:
    try:
        config = json.loads(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(f"--model-config {path}: expected a model's config.json ({error})") from error
    if not isinstance(config, dict):
        raise ModelError(f"--model-config {path}: expected a table, found {type(config).__name__}")
    return config


def _as_value(
    shape: ModelShape,
    estimates: list[Estimate],
    bounding: list[Bound],
    times: list[Duration],
    too_large: list[Shortage],
) -> dict[str, Any]:
    return {
        "parameters": {"total": shape.num_parameters, "active": shape.num_active},
        "steps": [
            {**asdict(each), "device_bytes": each.device_bytes, "host_bytes": each.host_bytes} for each in estimates
        ],
        "bounds": [{**asdict(each), "by": each.by} for each in bounding],
        "times": [{**asdict(each), "one_s": each.one_s, "by": each.by} for each in times],
        "shortages": [asdict(each) for each in too_large],
    }


def _print_times(times: list[Duration], data: DataSize, num_gpus: int, console: Console) -> None:
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for name in ("", "once", "times", "in the run", "most of it is"):
        table.add_column(name, justify="left" if name in ("", "most of it is") else "right")
    for each in times:
        table.add_row(each.step, _duration(each.one_s), str(each.times), _duration(each.total_s), each.by)
    total = sum(each.total_s for each in times)
    console.print(
        f"about {_duration(total)} on {num_gpus} GPUs, within a factor of 2, for {data.num_prompts:,} prompts of "
        f"{data.prompt} tokens with answers of {data.actual} and of {data.generated} generated tokens (--prompts, "
        "--lengths, --gpus)",
        highlight=False,
        soft_wrap=True,
    )
    console.print(table)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _print(estimates: list[Estimate], bounding: list[Bound], too_large: list[Shortage], console: Console) -> None:
    from spin_components.memory.fit import in_gib

    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for name in ("", "one GPU", "memory", "the largest parts"):
        table.add_column(name, justify="right" if name in ("one GPU", "memory") else "left")
    for each in estimates:
        parts = dict(each.device) or each.host_parts
        largest = sorted(parts, key=lambda name: -parts[name])[:4]
        device = in_gib(each.device_bytes) if each.device else "-"
        shown = ", ".join(f"{name} {in_gib(parts[name])}" for name in largest)
        table.add_row(each.step, device, in_gib(each.host_bytes), shown)
    console.print(table)
    for bound in bounding:
        times = ", ".join(f"{name} {seconds * 1e3:.3g} ms" for name, seconds in bound.seconds.items())
        line = f"{bound.step} is bound by {bound.by}: {bound.unit} take {times}"
        console.print(line, highlight=False, soft_wrap=True)
    for shortage in too_large:
        style = "red" if shortage.is_certain else "yellow"
        console.print(str(shortage), style=style, highlight=False, soft_wrap=True)
