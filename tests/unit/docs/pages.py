"""Writes the generated pages of `docs/`: settings, commands, formats, families, and the picture of `watch`.

`make docs` runs it; `test_generated_pages.py` fails where a committed page differs from what it gives. It is here
and not in the package because nobody who uses the package needs it, and because the models that are tested are
listed in tests.
It imports no torch.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from spin_components import __version__
from spin_components.data.formats import FORMATS, KEYS, REFUSED, Conversation, Format, parse_record
from spin_components.data.turns import REFUSED_IN_TURN
from spin_pipeline.cli import EXIT_CODES, _parser
from spin_pipeline.deploy.cluster_settings import Configuration
from unit.docs.picture import watch_picture

ROOT = Path(__file__).parents[3]
NOTICE = "<!-- Written by `make docs`: edit the code that it is made from. -->"

EXAMPLES: dict[str, dict[str, Any]] = {
    "chat": {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]},
    "the SPIN authors' files; `generated` is not read": {
        "real": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}],
        "generated": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "another"}],
    },
    "NeMo's SFT chat; `mask` names the user": {
        "system": "S",
        "mask": "User",
        "conversations": [{"from": "User", "value": "Q"}, {"from": "Assistant", "value": "A"}],
    },
    "ShareGPT": {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
    "text": {"prompt": "Q", "response": "A"},
    "text, by TRL's names": {"prompt": "Q", "completion": "A"},
    "TRL's lists of messages": {
        "prompt": [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}],
        "completion": [{"role": "assistant", "content": "A"}],
    },
    "instructions (Alpaca)": {"instruction": "Q", "output": "A"},
    "instructions with an input": {"instruction": "Q", "input": "text", "output": "A"},
    "LLaMA-Factory's instructions": {
        "instruction": "Q",
        "output": "A",
        "system": "S",
        "history": [["earlier Q", "earlier A"]],
    },
    "Dolly": {"instruction": "Q", "context": "text", "response": "A", "category": "open_qa"},
    "preferences; `rejected` is not read": {
        "prompt": "Q",
        "chosen": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}],
        "rejected": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "another"}],
    },
}
"""A record of each form that `data.formats` reads."""

_APOSTROPHES = {"trls": "TRL's", "an answers": "an answer's", "the models own": "the model's own"}
"""Words of tests' names, which have none."""


def settings_page() -> str:
    """Every section and key of a configuration file, from the pydantic models."""
    schema = Configuration.model_json_schema()
    lines = [
        NOTICE,
        "# Settings",
        "",
        "A configuration is a TOML file with one table a section; `--set section.key=value` overrides a key of it. "
        "Unknown keys are errors, and all mistakes are reported at once. A key without a default must be given. "
        "Where a count or a fraction is asked for, `3` is a count and `0.5` or `1.0` a fraction.",
        "",
        "Complete files are in `pipeline/configs/`: `tiny`, `demo`, `zephyr-7b`, `70b`.",
    ]
    for name, field in Configuration.model_fields.items():
        model = field.annotation
        assert isinstance(model, type) and issubclass(model, BaseModel)
        text = _escaped(" ".join((model.__doc__ or "").split()))
        lines += ["", f"## [{name}]", "", text, "", *_keys(model, schema)]
    return "\n".join(lines) + "\n"


def _keys(model: type[BaseModel], schema: dict[str, Any]) -> list[str]:
    rows = []
    for key, value in schema["$defs"][model.__name__]["properties"].items():
        field = model.model_fields[key]
        default = "none: must be given"
        if not field.is_required():
            default = f"`{_toml(value.get('default', field.get_default(call_default_factory=True)))}`"
        rows.append((f"`{key}`", _type(value, schema), default, _escaped(value.get("description", ""))))
    return _table(("key", "value", "default", "what it is"), rows)


def _type(value: dict[str, Any], schema: dict[str, Any]) -> str:
    """A JSON schema in words."""
    if "anyOf" in value:
        if [each.get("type") for each in value["anyOf"]] == ["integer", "number"]:
            return "count or fraction"
        return " or ".join(dict.fromkeys(_type(each, schema) for each in value["anyOf"]))
    if "enum" in value or "const" in value:
        return " or ".join(f"`{_toml(each)}`" for each in value.get("enum", [value.get("const")]))
    if "$ref" in value:
        fields = schema["$defs"][value["$ref"].rpartition("/")[2]]["properties"]
        return "table of " + " and ".join(
            f"`{name}` ({field.get('description', '').partition(':')[0]})" for name, field in fields.items()
        )
    kind = {"integer": "integer", "number": "number", "string": "text", "boolean": "`true` or `false`"}
    if value["type"] == "array":
        return f"list of {_plural(_type(value['items'], schema))}"
    if value["type"] == "object":
        return "table of texts" if value.get("additionalProperties") == {"type": "string"} else "table"
    limits = [
        f"{sign} {value[name]}"
        for name, sign in (
            ("minimum", "≥"),
            ("exclusiveMinimum", ">"),
            ("maximum", "≤"),
            ("exclusiveMaximum", "<"),
        )
        if name in value
    ]
    return " ".join((kind[value["type"]], ", ".join(limits))).strip()


def _plural(kind: str) -> str:
    noun, space, rest = kind.partition(" ")
    return f"{noun}s{space}{rest}"


def _toml(value: Any) -> str:
    """A value as a configuration file writes it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(each)}" for key, each in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False)


def commands_page() -> str:
    """Every command with its options, from the parser."""
    parser = _parser()
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    told = {action.dest: action.help or "" for action in commands._choices_actions}
    lines = [NOTICE, "# Commands", "", _sentence(EXIT_CODES), ""]
    lines += _table(("command", "what it does"), [(f"[`{name}`](#{name})", _escaped(told[name])) for name in told])
    for name, command in commands.choices.items():
        actions = [action for action in command._actions if action.dest != "help"]
        lines += ["", f"## {name}", "", _sentence(command.description or told[name]), ""]
        lines += ["```", " ".join(("spin-pipeline", name, *map(_usage, actions))), "```", ""]
        lines += _table(("option", "what it is"), [(_option(action), _help(action)) for action in actions])
        if command.epilog and EXIT_CODES not in (command.epilog or ""):
            lines += ["", _sentence(command.epilog)]
        elif command.epilog and (more := command.epilog.replace(EXIT_CODES, "").strip(" .;")):
            lines += ["", _sentence(more)]
    return "\n".join(lines) + "\n"


def _usage(action: argparse.Action) -> str:
    value = str(action.metavar or action.dest.upper())
    if not action.option_strings:
        return f"{value} [{value} ...]" if action.nargs == "+" else value
    name = action.option_strings[-1]
    if action.nargs == 0:
        return f"[{name}]"
    shown = "{" + ",".join(map(str, action.choices)) + "}" if action.choices else value
    return f"[{name} {shown}]" + (" ..." if isinstance(action, argparse._AppendAction) else "")


def _option(action: argparse.Action) -> str:
    if not action.option_strings:
        return f"`{action.metavar or action.dest}`"
    value = "" if action.nargs == 0 else f" {action.metavar or ','.join(map(str, action.choices or ()))}"
    return ", ".join(f"`{name}{value}`" for name in action.option_strings)


def _help(action: argparse.Action) -> str:
    text = (action.help or "") % vars(action) if action.help else "address of a run" * (action.dest[:3] == "run")
    return _escaped(text)


def _sentence(text: str) -> str:
    text = text.strip().rstrip(".")
    return _escaped(f"{text[:1].upper()}{text[1:]}.")


def formats_page() -> str:
    """Forms of records with what becomes of them, and the families of models that tests run."""
    lines = [
        NOTICE,
        "# Data formats and model families",
        "",
        "## Data",
        "",
        "JSONL (also `.gz`) or Parquet: one record a line or row, recognised by its keys. The first form in this table "
        "whose keys are all there is taken; a key that holds null counts as absent. "
        "The last turn must be the assistant's: it is the human answer.",
        "",
    ]
    rows = [(told, f"`{json.dumps(record)}`", _read(parse_record(record))) for told, record in EXAMPLES.items()]
    lines += _table(("form", "record", "read as"), rows)
    lines += ["", "What becomes of further keys:", ""]
    lines += _table(
        ("format", "read", "refused where it holds what no turn says", "not read"), map(_further_keys, FORMATS)
    )
    lines += ["", "What they hold:", ""]
    lines += _table(("key", "what it is"), [(f"`{key}`", f"read: {told}") for key, told in KEYS.items()])
    lines += [(f"| `{key}` | refused: {told} |") for key, told in REFUSED.items() if key not in KEYS]
    turn_keys = ", ".join(f"`{key}`" for key in REFUSED_IN_TURN)
    lines += [
        "",
        f"A turn with one of {turn_keys}, or of a tool, is refused. So is a record whose `weight`, or that of its last "
        "turn (also `train`, `training`), is not 1, and an answer whose `label` is false. Any other key that holds "
        "text which is in no turn is counted, and `prepare` warns with its name.",
        "",
        "A record that cannot be used is named by file and line and refuses the run; with "
        '`data.on_bad_record = "skip"` such records are left out and counted.',
        "",
        "## Models",
        "",
        "A model is a Hugging Face folder with safetensors that `transformers` loads as a causal language model. "
        "These families are tested: each row is a test that runs for every family it names. Where packed rows, or a "
        "cache with a row for each sequence, do not fit an architecture (attention sinks, windows that live in the "
        "mask alone, states that are carried from token to token), it is scored in padded batches and sampled by "
        "`transformers`. An encoder with a decoder, a table of positions without `position_ids`, and a router that "
        "draws experts at random (PhiMoE) are refused. Adapters are of linear layers: experts that one tensor of a "
        "layer holds keep their weights, and Mamba is refused with an adapter. Of Qwen3.5's models of images and text "
        "the language model is trained and published.",
        "",
    ]
    lines += _table(("what is tested", "families", "test"), _tested_families())
    lines += [
        "",
        "## What was tried",
        "",
        "Every form of a record and every family, with the versions that `constraints.txt` pins. Forms are read and "
        "rendered by `tests/unit/data/test_formats.py` and `tests/integration/test_own_data.py`, families go through "
        "`prepare` to `checkpoint` in `tests/integration/test_family_runs.py`, where each log-probability of the run "
        "is that of the model's own forward pass. Refused in `prepare`, by what they lack: PhiMoE, BART and other "
        "models with an encoder, and the wrapper of Gemma 3n where timm is not installed (its text model trains).",
        "",
    ]
    lines += _table(("format or family", "tried", "batches", "version"), _tried())
    return "\n".join(lines) + "\n"


def _further_keys(form: Format) -> tuple[str, ...]:
    refused = [key for key in REFUSED if key not in form.used]
    columns = (form.used, refused, form.left)
    return (" + ".join(f"`{key}`" for key in form.keys), *(", ".join(f"`{key}`" for key in each) for each in columns))


def _read(conversation: Conversation) -> str:
    turns = [(message.role, message.content) for message in conversation.prompt]
    turns.append(("human answer", conversation.answer))
    return "; ".join(f"{role}: `{json.dumps(content)[1:-1]}`" for role, content in turns)


def families(table: str) -> list[str]:
    """Names of the families in a table of `families.py`, which is read and not imported: it needs torch."""
    (path,) = (ROOT / "tests").rglob("families.py")
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == table:
            assert isinstance(node.value, ast.Dict)
            return [ast.literal_eval(key) for key in node.value.keys if key]
    raise AssertionError(f"{path} has no {table}")


def _tested_families() -> list[tuple[str, str, str]]:
    """Tests that run for all families, by file; and those of some of them."""
    rows = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.FunctionDef) and (named := _families_of(node)):
                words = node.name.removeprefix("test_").replace("_", " ")
                for plain, written in _APOSTROPHES.items():
                    words = words.replace(plain, written)
                rows.append(
                    (
                        _sentence(words),
                        ", ".join(f"`{name}`" for name in named),
                        f"`{path.relative_to(ROOT).as_posix()}`",
                    )
                )
    return rows


def _families_of(function: ast.FunctionDef) -> list[str]:
    for decorator in function.decorator_list:
        match decorator:
            case ast.Call(args=[ast.Constant(value="family"), ast.Name(id=("CONFIGS" | "OTHERS") as table)]):
                return families(table)
            case ast.Call(args=[ast.Constant(value="family"), ast.List(elts=elements)]):
                return [name for element in elements for name in _named(element)]
    return []


def _named(element: ast.expr) -> list[str]:
    """The families of an element of a list: one by its name, or all of a table."""
    match element:
        case ast.Starred(value=ast.Name(id=("CONFIGS" | "OTHERS" | "WRAPPERS") as table)):
            return families(table)
        case ast.Constant(value=str(name)):
            return [name]
    return []


def _set_of(file: str, table: str) -> set[str]:
    """A set of families in a module of tests, which is read and not imported."""
    (path,) = (ROOT / "tests").rglob(file)
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == table:
            return set(ast.literal_eval(node.value))
    raise AssertionError(f"{path} has no {table}")


def _pinned(package: str) -> str:
    """A package with the version that `constraints.txt` installs."""
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    return next(line.partition(";")[0].strip().replace("==", " ") for line in lines if line.startswith(f"{package}=="))


def _tried() -> list[tuple[str, str, str, str]]:
    """Every form of a record and every family, with what tests do with it and by which version."""
    forms = [(form, "read, rendered", "-", f"SPIN pipelines {__version__}") for form in EXAMPLES]
    tests, padded = _tested_families(), _set_of("test_families.py", "PADDED")
    without = _set_of("test_family_runs.py", "NO_ADAPTER")
    rows = []
    for family in (*families("CONFIGS"), *families("OTHERS"), *families("WRAPPERS")):
        names = [name for name, of, _ in tests if f"`{family}`" in of.split(", ")]
        runs = {name for name in names if name.startswith(("A whole run", "The language model of a wrapper"))}
        done = ["whole run"]
        if any("with an adapter" in name for name in runs):
            done.append("refused with an adapter" if family in without else "with an adapter")
        if others := len(names) - len(runs):
            done.append(f"{others} tests of its numbers")
        kind = "padded" if {family, f"{family}_text"} & padded else "packed"
        rows.append((f"`{family}`", ", ".join(done), kind, _pinned("transformers")))
    return forms + rows


def _escaped(text: str) -> str:
    """Text that Markdown takes as it is, in a table too; what is in backticks already stays."""
    parts = text.replace("\n", " ").split("`")
    return "`".join(part if place % 2 else re.sub(r"([|*<])", r"\\\1", part) for place, part in enumerate(parts))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    body = ["| " + " | ".join(cell.replace("`|`", "`\\|`") for cell in row) + " |" for row in rows]
    return ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |", *body]


PAGES: dict[str, Callable[[], str]] = {
    "docs/reference/settings.md": settings_page,
    "docs/reference/commands.md": commands_page,
    "docs/reference/formats.md": formats_page,
    "docs/images/watch.svg": watch_picture,
}


def main() -> None:
    """Write all of them."""
    for name, make in PAGES.items():
        (ROOT / name).write_text(make(), "utf-8")


if __name__ == "__main__":
    main()
