"""Bad models: folders without a model, files of the wrong shape, weights that are cut or none, templates that fail."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from security.bad_inputs import BadInput
from spin_components.data.formats import Message
from spin_components.data.rendering import Renderer
from spin_components.data.templates import ChatTemplate, model_template
from spin_components.errors import DataError
from spin_components.model.folder import check_model_folder, load_tokenizer
from spin_components.settings.run import ModelSettings
from support.chat_tokenizers import CHATML, byte_level
from support.safetensors_files import write_zeros

CONFIG = {"model_type": "llama", "eos_token_id": 2}
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


def _model(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_text("{}")
    write_zeros(folder / "model.safetensors", {"a.weight": [2, 2]})


def _with(name: str, content: bytes | None) -> Callable[[Path], None]:
    """Check a model one of whose files has other content, or is not there."""

    def use(folder: Path) -> None:
        _model(folder)
        if content is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(content)
        check_model_folder(folder, what="model.base", address="the model")

    return use


def _json(name: str, value: Any) -> Callable[[Path], None]:
    return _with(name, json.dumps(value).encode())


def _header(entries: Any, *, length: int | None = None, end: bytes = b"") -> bytes:
    text = json.dumps(entries).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + end


def _tensor(**changes: Any) -> bytes:
    return _header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **changes}}, end=bytes(4))


def _pipe(name: str) -> Callable[[Path], None]:
    def use(folder: Path) -> None:
        _model(folder)
        (folder / name).unlink()
        os.mkfifo(folder / name)
        check_model_folder(folder, what="model.base")

    return use


def _renamed(folder: Path) -> None:
    _model(folder)
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    check_model_folder(folder, what="model.base")


def _cut(folder: Path) -> None:
    _model(folder)
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-1])
    check_model_folder(folder, what="model.base")


def _adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "them/base"}')
    check_model_folder(folder, what="model.base")


def _tokenizer(content: bytes) -> Callable[[Path], None]:
    def use(folder: Path) -> None:
        (folder / "tokenizer.json").write_bytes(content)
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
        load_tokenizer(folder, ModelSettings(base="x"))

    return use


NOT_TABLES: dict[str, tuple[bytes, str]] = {
    "a list": (b"[]", r"holds list, expected a JSON object"),
    "text": (b'"x"', r"holds str, expected a JSON object"),
    "null": (b"null", r"holds NoneType, expected a JSON object"),
    "no JSON": (b"{", r"is not JSON: "),
    "not UTF-8": (b"\xff\xfe", r"is not JSON: "),
    "nothing": (b"", r"is not JSON: "),
    "a pointer": (POINTER, r"is a Git LFS pointer"),
    "a deep nest": (b"[" * 100_000, r"is not JSON: "),
}
"""Content of a file that should hold a JSON object, with the message."""
TABLES = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json")

HEADERS: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", r"is not a safetensors file: its header cannot be read"),
    "a pickle": (b"\x80\x04\x95" + bytes(99), r"is not a safetensors file: .*its header alone would have"),
    "a zip of torch": (b"PK\x03\x04" + bytes(99), r"is not a safetensors file"),
    "GGUF": (b"GGUF\x03\0\0\0" + bytes(99), r"is not a safetensors file"),
    "a pointer": (POINTER, r"is a Git LFS pointer"),
    "HTML": (b"<!doctype html><html>not found</html>", r"is not a safetensors file"),
    "a length beyond all": (_header({}, length=2**64 - 1), r"its header alone would have 18446744073709551615"),
    "a header that is a list": (_header([]), r"is not a safetensors file"),
    "a header of text": ((9).to_bytes(8, "little") + b"not JSON!", r"is not a safetensors file"),
    "an entry that is text": (_header({"a": "b"}), r"is not a safetensors file"),
    "no type": (_tensor(dtype=None), r"the entry of a has no dtype, shape and offsets"),
    "a type that is a list": (_tensor(dtype=["F32"]), r"the entry of a has no dtype"),
    "a shape of text": (_tensor(shape="11"), r"is not a safetensors file"),
    "a negative shape": (_tensor(shape=[-1]), r"the entry of a has no dtype"),
    "offsets of text": (_tensor(data_offsets=["0", "4"]), r"is not a safetensors file"),
    "one offset": (_tensor(data_offsets=[0]), r"is not a safetensors file"),
    "beyond the end": (_tensor(data_offsets=[0, 400]), r"bytes, its header says \d+; download it again"),
    "fewer bytes than its shape": (_tensor(shape=[2]), r"contradicts itself: .*; download it again"),
    "an end before its begin": (_tensor(data_offsets=[4, 0]), r"contradicts itself: .*; download it again"),
    "a gap": (_tensor(data_offsets=[2, 6]), r"(contradicts itself|its header says)"),
    "an unknown type": (_tensor(dtype="F33"), r"contradicts itself: .*F33.*; download it again"),
    "bytes that belong to nothing": (_tensor() + b"1234", r"contradicts itself: .*; download it again"),
}
"""Content of a weights file, with the message."""

INDICES: dict[str, tuple[Any, str]] = {
    "a list": ([], r"is not an index of safetensors files"),
    "no map": ({"metadata": {}}, r"is not an index of safetensors files"),
    "a map that is a list": ({"weight_map": []}, r"is not an index of safetensors files"),
    "names that are numbers": ({"weight_map": {"a": 1}}, r"is not an index of safetensors files"),
    "names with NUL": ({"weight_map": {"a": "x\0"}}, r"is not an index of safetensors files"),
    "files that are not there": ({"weight_map": {"a": "x.safetensors"}}, r"of which x\.safetensors are not in the"),
    "files outside": ({"weight_map": {"a": "../x.safetensors"}}, r"of which \.\./x\.safetensors are not in the folder"),
}
"""Indices of sharded weights, with the message."""


def _index(value: Any) -> Callable[[Path], None]:
    def use(folder: Path) -> None:
        _model(folder)
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(json.dumps(value))
        check_model_folder(folder, what="model.base")

    return use


TEMPLATES: dict[str, tuple[str, str]] = {
    "divides by zero": ("{{ 1 / 0 }}", r"rejects turns of .*division by zero"),
    "no syntax": ("{% for %}", r"rejects turns of .*[Ee]xpected"),
    "never ends itself": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", r"rejects turns of .*recursion"),
    "an unknown filter": ("{{ messages | nothing }}", r"rejects turns of .*No filter named"),
    "an unknown name": ("{{ nobody.nothing }}", r"rejects turns of .*undefined"),
    "includes a file": ("{% include '/etc/passwd' %}", r"rejects turns of .*no loader"),
    "reaches Python": ("{{ messages.__class__.__mro__[1].__subclasses__() }}", r"rejects turns of .*unsafe"),
    "its own error": ("{{ raise_exception('x' * 9999) }}", r"rejects turns of .*x{200}"),
    "not a number": ("{{ messages[0] + 1 }}", r"rejects turns of .*unsupported operand"),
    "no such turn": ("{{ messages[99].role }}", r"rejects turns of .*"),
    "leaves out the question": ("{% for m in messages %}{{ m.role }}{% endfor %}", r"question|user"),
    "a form of time": ("{{ strftime_now(5) }}", r"rejects turns of .*str"),
    "ranges beyond all": ("{% for i in range(10 ** 9) %}x{% endfor %}", r"rejects turns of .*[Rr]ange"),
}
"""Chat templates, with the message."""


def _rendered(text: str) -> Callable[[Path], None]:
    def use(folder: Path) -> None:
        tokenizer = byte_level(CHATML, eos_token="<|end|>")
        template = ChatTemplate(tokenizer, text)
        try:
            template.apply([Message("user", "Hi")], add_generation_prompt=True)
        except ValueError as error:
            raise DataError(f"data.jsonl, line 1: {error}") from error
        Renderer(tokenizer, [tokenizer.eos_token_id], max_length=64, max_prompt_length=32, template=template)

    return use


def _named_template(content: Any) -> Callable[[Path], None]:
    def use(folder: Path) -> None:
        (folder / "chat_template.json").write_text(json.dumps(content))
        model_template(byte_level(None), folder, "tools")

    return use


BAD_MODELS = [
    *(
        BadInput(f"{name}: {kind}", _with(name, content), message)
        for name in TABLES
        for kind, (content, message) in NOT_TABLES.items()
    ),
    *(BadInput(f"weights: {n}", _with("model.safetensors", content), m) for n, (content, m) in HEADERS.items()),
    *(BadInput(f"index: {name}", _index(value), message) for name, (value, message) in INDICES.items()),
    *(BadInput(f"template: {name}", _rendered(text), message) for name, (text, message) in TEMPLATES.items()),
    *(
        BadInput(f"eos_token_id: {value!r}", _json("generation_config.json", {"eos_token_id": value}), message)
        for value, message in {
            "</s>": r"generation_config\.json: eos_token_id is '</s>', expected a token id",
            2.5: r"eos_token_id is 2\.5, expected a token id",
            True: r"eos_token_id is True, expected a token id",
        }.items()
    ),
    BadInput(
        "eos_token_id: in config", _json("config.json", {"eos_token_id": [[2]]}), r"config\.json: eos_token_id is"
    ),
    BadInput(
        "no folder", lambda folder: _missing(folder / "none"), r"does not exist; expected a folder in Hugging Face"
    ),
    BadInput("a file", lambda folder: _missing(_touched(folder / "file")), r"is a file; expected a folder"),
    BadInput("an empty folder", lambda folder: _missing(folder), r"has no config\.json; expected a Hugging Face model"),
    BadInput("no weights", _with("model.safetensors", None), r"has no \*\.safetensors, the only format that is read"),
    BadInput("renamed weights", _renamed, r"has no \*\.safetensors.*there is weights\.safetensors"),
    BadInput("cut weights", _cut, r"bytes, its header says \d+; download it again"),
    BadInput("no tokenizer", _with("tokenizer.json", None), r"has no tokenizer; save it beside the weights"),
    BadInput("a pointer as tokenizer", _with("tokenizer.json", POINTER), r"tokenizer\.json is a Git LFS pointer"),
    BadInput("an adapter", _adapter, r"holds an adapter made on 'them/base' and no model"),
    BadInput("a pipe as config", _pipe("config.json"), r"has no config\.json"),
    BadInput("a pipe as weights", _pipe("model.safetensors"), r"has no \*\.safetensors"),
    BadInput(
        "quantized", _json("config.json", {"quantization_config": {"quant_method": "gptq"}}), r"is quantized \(con"
    ),
    BadInput("tokenizer: a list", _tokenizer(b"[]"), r"the tokenizer in .* cannot be loaded by tokenizers"),
    BadInput("tokenizer: cut", _tokenizer(b'{"version": "1.0", "mod'), r"the tokenizer in .* cannot be loaded"),
    BadInput("tokenizer: nothing", _tokenizer(b""), r"the tokenizer in .* cannot be loaded"),
    BadInput("template's file: numbers", _named_template({"chat_template": [1]}), r"expected the name of one of the"),
    BadInput(
        "template's file: a list", _named_template([1]), r"expected the name of one of the model's chat templates"
    ),
]


def _missing(folder: Path) -> None:
    check_model_folder(folder, what="model.base")


def _touched(path: Path) -> Path:
    path.touch()
    return path
