"""What the benchmarks of training measure on: the demo model, real prompts, its own answers to them, global batches."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import torch

from spin_components.algorithm.batching import derive_seed, form_batches, permutation
from spin_components.data.shards import Pair, write_rows
from spin_components.model.compute import Compute
from spin_components.settings.generation import GenerationSettings
from spin_components.settings.run import ModelSettings
from spin_components.settings.settings import Settings

GLOBAL_BATCH, MICRO_BATCH = 8, 4
COMPUTE = Compute(torch.device("cpu"), "float32")


def sources() -> list[tuple[str, str]]:
    """Functions of the standard library, as source, with their docstrings, whole."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found: list[tuple[str, str]] = []
    for path in sorted(root.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.FunctionDef) and (answer := ast.get_docstring(node)) and len(node.body) > 1:
                code = ast.unparse(ast.FunctionDef(**{**vars(node), "body": node.body[1:]}))
                found.append((f"Document this function.\n\n{code}", answer))
    return found


def make_pairs(folder: Path, num: int, *, ask: str = "names") -> None:
    """The demo model, and pairs of human answers and its own.

    Args:
        folder: to be filled.
        num: of pairs.
        ask: `names` asks what a function does by its name, as the demo's data; `sources` shows it.
    """
    from spin_components.data.builtin import docstrings, make_smollm2
    from spin_components.data.formats import Conversation, Message
    from spin_components.data.rendering import Renderer
    from spin_components.data.turn_ends import find_eos_ids
    from spin_components.engine.engine import Sampling
    from spin_components.engine.transformers_engine import TransformersEngine
    from spin_components.model.folder import load_tokenizer

    make_smollm2(folder / "model")
    settings = ModelSettings(base=str(folder / "model"))
    tokenizer = load_tokenizer(folder / "model", settings)
    renderer = Renderer(tokenizer, find_eos_ids(tokenizer, 2), max_length=512, max_prompt_length=256)
    texts = list(docstrings()) if ask == "names" else sources()
    chosen = [texts[place] for place in permutation(len(texts), seed=0)[:num]]
    rendered = [renderer.render(Conversation((Message("user", question),), answer)) for question, answer in chosen]
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


def settings_of(folder: Path, **training: Any) -> Settings:
    """Of a run on the demo model."""
    sizes = {"global_batch_size": GLOBAL_BATCH, "micro_batch_size": MICRO_BATCH, "precision": "float32"}
    return Settings.model_validate(
        {"model": {"base": str(folder / "model")}, "data": {"train": "-"}, "training": sizes | training}
    )


def in_a_process(script: str, *arguments: str) -> dict[str, Any]:
    """What a benchmark called with arguments of its own measures, with the peak of its memory."""
    command = [sys.executable, script, *arguments]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ})
    return json.loads(output.stdout.rpartition("RESULT ")[2])  # type: ignore[no-any-return]


def tell(found: dict[str, Any]) -> None:
    """The other end of `in_a_process`."""
    status = Path("/proc/self/status").read_text("ascii").splitlines()
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    sys.stdout.write("\nRESULT " + json.dumps({**found, "peak_mib": peak / 1024}) + "\n")
