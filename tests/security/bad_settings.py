"""Bad configurations: no TOML, wrong tables, values out of range, addresses that hold a key, text of any kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from security.bad_inputs import SECRET, BadInput
from spin_pipeline.config import load_settings

FILES: dict[str, tuple[bytes, str]] = {
    "open table": (b"[run", r"bad\.toml is not TOML: Expected ']' at the end of a table"),
    "no value": (b"[run]\nseed =", r"is not TOML: Invalid value"),
    "key twice": (b"[run]\nseed = 1\nseed = 2", r"is not TOML: Cannot overwrite a value"),
    "table twice": (b"[run]\n[run]\n", r"is not TOML: .*line 2"),
    "not UTF-8": (b"[run]\nname = '\xff'", r"is not TOML: .*0xff"),
    "UTF-16": ("[run]\n".encode("utf-16"), r"is not TOML"),
    "NUL": (b"[run]\n\0", r"is not TOML"),
    "JSON": (b'{"run": {"seed": 1}}', r"is not TOML: .*line 1"),
    "YAML": (b"run:\n  seed: 1\n", r"is not TOML: .*line 1"),
    "deep nest": (b"a = " + b"[" * 20_000, r"is not TOML: nested too deeply"),
    "long number": (b"[run]\nseed = " + b"9" * 10_000, r"is not TOML: .*digits|run\.seed"),
    "section is a number": (b"run = 3", r"mistakes in .*\n  run = "),
    "section is a list": (b"[[run]]\nseed = 1", r"mistakes in .*\n  run = "),
    "section is text": (b"spin = 'on'", r"spin"),
    "unknown section": (b"[runn]\nseed = 1", r"runn: unknown key; did you mean 'run'\?"),
    "unknown key": (b"[spin]\nmax_iteration = 1", r"spin\.max_iteration: unknown key; did you mean 'max_iterations'\?"),
    "markup": (b"[spin]\n'[bold]x[/bold]' = 1", r"spin\.\[bold\]x\[/bold\]: unknown key"),
    "escape codes": (b"[spin]\n'\\u001b[31m' = 1\n\"\\u001b[31m\" = 2", r"\\(u001b|x1b)\[31m: unknown key"),
    "20 MB value": (b"[run]\nname = '" + b"x" * (20 << 20) + b"'", r"run\.name = 'x+ … \(\d+ characters left out\)"),
    "20 MB key": (b"[run]\n" + b"x" * (20 << 20) + b" = 1", r"run\.x+ … \(\d+ characters left out\)"),
}
"""Whole files, with the message."""

VALUES: dict[str, str] = {
    "run.seed = -1": r"run\.seed = -1: input should be greater than or equal to 0",
    "run.seed = 1.5": r"run\.seed = 1\.5: ",
    "run.seed = 'x'": r"run\.seed = 'x': ",
    "run.seed = 2147483648": r"run\.seed = 2147483648: .*less than 2147483648",
    "run.seed = inf": r"run\.seed = inf",
    "run.seed = []": r"run\.seed = \[\]",
    "run.seed = 1979-05-27": r"run\.seed",
    "run.name = 'Has Spaces'": r"run\.name = 'Has Spaces': string should match pattern",
    "run.name = ''": r"run\.name = ''",
    "run.max_time = '1:2'": r"run\.max_time = '1:2': '1:2' is not a duration; write seconds",
    "run.max_time = 'soon'": r"is not a duration",
    "spin.max_iterations = 0": r"spin\.max_iterations = 0",
    "spin.ref_policy_kl_penalty = nan": r"spin\.ref_policy_kl_penalty",
    "spin.ref_policy_kl_penalty = -1": r"spin\.ref_policy_kl_penalty",
    "spin.ref_policy_kl_penalty = [0.1]": r"ref_policy_kl_penalty has 1 entries for \d iterations",
    "spin.max_epochs = []": r"max_epochs has 0 entries for 3 iterations",
    "spin.max_epochs = [1, 'x']": r"spin\.max_epochs",
    "spin.history = 100": r"spin\.history = 100: .*less than or equal to 32",
    "spin.history_ratio = 0": r"give a number above 0, or 'all'",
    "spin.max_length_ratio = 0.5": r"the ratio of longer to shorter answer is at least 1",
    "data.max_length = 0": r"data\.max_length = 0",
    "data.on_bad_record = 'guess'": r"data\.on_bad_record = 'guess': input should be 'fail' or 'skip'",
    "training.lr = 0": r"training\.lr = 0",
    "training.lr = nan": r"training\.lr",
    "training.precision = 'fp8'": r"training\.precision = 'fp8'",
    "training.micro_batch_size = -4": r"training\.micro_batch_size = -4",
    "generation.temperature = -1": r"generation\.temperature",
    "generation.top_p = 2": r"generation\.top_p = 2",
    "generation.engine = 'magic'": r"generation\.engine = 'magic'",
    "hardware.device = 'tpu'": r"hardware\.device = 'tpu'",
    "hardware.ranks = 0": r"hardware\.ranks = 0",
    "hardware.gpu_memory_gib = inf": r"hardware\.gpu_memory_gib = inf",
    "selection.confidence = 1": r"selection\.confidence = 1: input should be less than 1",
    "selection.max_length_ratio = 0.5": r"1 is the human's own length",
    "placement.train = { cpu = 'many' }": r"placement\.train",
    "placement.tolerations = [{ kee = 'x' }]": r"a toleration has .*; found kee",
    "placement.affinity = { podAffinity = 1 }": r"a node affinity has .*; found podAffinity",
    "evaluation.limit = 0": r"0 selects nothing",
    "evaluation.limit = 'some'": r"evaluation\.limit = 'some'",
    "evaluation.tasks = ['a', 'a']": r"names a task twice: a, a",
    "evaluation.tasks = ['../x']": r"evaluation\.tasks = '\.\./x'",
    "evaluation.task_files = 'x'": r"evaluation\.task_files is set, but evaluation\.tasks is empty",
    "evaluation.judge_model = 'm'": r"judge_url and evaluation\.judge_model must both be set",
    "evaluation.judge_url = 'localhost'": r"judge_url = 'localhost': write http://host:port/v1",
    "evaluation.judge_url = 'ftp://host/v1'": r"write http://host:port/v1",
    "evaluation.judge_template = 'Grade {prompt}'": r"the placeholder \{answer\} is missing",
    "tracking.mlflow_uri = 'sqlite:///x'": r"write http://host:port, https://host, or file:///folder",
    "cluster.env = 'x'": r"cluster\.env = 'x': input should be a valid dictionary",
}
"""Values of single settings, with the message."""

KEYS: dict[str, str] = {
    f"evaluation.judge_url = 'https://user:{SECRET}@judge/v1'": r"judge_url = 'https://\*\*\*@judge/v1': credentials",
    f"evaluation.judge_url = 'https://{SECRET}@judge/v1'": r"judge_url = 'https://\*\*\*@judge/v1': credentials",
    f"evaluation.judge_url = 'ftp://user:{SECRET}@judge/v1'": r"judge_url = 'ftp://\*\*\*@judge/v1': write",
    f"tracking.mlflow_uri = 'https://user:{SECRET}@host'": r"mlflow_uri = 'https://\*\*\*@host': credentials",
    f"tracking.mlflow_uri = 'mysql://user:{SECRET}@host/db'": r"mlflow_uri = 'mysql://\*\*\*@host/db': write",
}
"""The same, where the value holds a key."""

ADDRESSES: dict[str, tuple[str, str]] = {
    "key in s3 run": (f"s3://user:{SECRET}@bucket/run", r"run\.uri has credentials or a port before"),
    "key with a slash": (f"s3://user:{SECRET}/x@bucket/run", r"run\.uri has credentials or a port before"),
    "key in https run": (f"https://user:{SECRET}@host/run", r"'https://\*\*\*@host/run': scheme 'https' is not"),
    "key in file run": (f"file://user:{SECRET}@host/run", r"'file://\*\*\*@host/run' names the host 'host'"),
    "host in file run": ("file://host/run", r"names the host 'host'; write file:///path"),
    "other scheme": ("gs://bucket/run", r"run\.uri = 'gs://bucket/run': scheme 'gs' is not supported here"),
    "bucket": ("s3://b_/run", r"'b_' is not a valid bucket name"),
    "no bucket": ("s3://", r"'' is not a valid bucket name"),
    "dots": ("s3://bucket/a/../b", r"object storage has no '\.' and '\.\.'"),
    "not UTF-8": ("/tmp/\udcff/run", r"run\.uri = '/tmp/\\udcff/run' is not UTF-8 text; rename"),
    "quoted not UTF-8": ("file:///tmp/%ff/run", r"run\.uri = '/tmp/\\udcff/run' is not UTF-8 text; rename"),
    "NUL": ("file:///tmp/a%00b", r"has a NUL character, which no path may have"),
    "empty": ("", r"run\.uri is empty; expected a path"),
}
"""Addresses of a run, of its model, its data and its task files, with the message for a run's."""


def _load(content: bytes) -> Callable[[Path], None]:
    def use(folder: Path) -> None:
        (folder / "bad.toml").write_bytes(content)
        load_settings(str(folder / "bad.toml"))

    return use


def _table(assignment: str) -> bytes:
    section, _, rest = assignment.partition(".")
    return f"[{section}]\n{rest}\n".encode()


def _run_at(uri: str) -> Callable[[Path], list[str]]:
    return lambda folder: ["status", uri]


OVERRIDES: dict[str, tuple[str, str]] = {
    "no equals": ("spin.max_iterations", r"--set spin\.max_iterations: expected section\.key=value"),
    "no section": ("seed=1", r"--set seed=1: expected section\.key=value"),
    "no key": ("run.=1", r"expected section\.key=value"),
    "into a value": ("run.seed.x=1", r"run\.seed|--set run\.seed\.x=1"),
    "key in it": (f"evaluation.judge_url=https://u:{SECRET}@h/v1", r"judge_url = 'https://\*\*\*@h/v1'"),
    "key in no setting": (f"https://u:{SECRET}@h/v1", r"--set https://\*\*\*@h/v1: expected section"),
    "markup": ("[red]x[/red]", r"--set \[red\]x\[/red\]: expected"),
}
"""Overrides, with the message."""


def _override(text: str) -> Callable[[Path], None]:
    def use(folder: Path) -> None:
        load_settings("tiny", [text])

    return use


BAD_SETTINGS = [
    *(BadInput(f"file: {name}", _load(content), message) for name, (content, message) in FILES.items()),
    *(BadInput(f"value: {value}", _load(_table(value)), message) for value, message in VALUES.items()),
    *(BadInput(f"key: {index}", _load(_table(value)), KEYS[value]) for index, value in enumerate(KEYS)),
    *(BadInput(f"run: {name}", _run_at(uri), message) for name, (uri, message) in ADDRESSES.items()),
    *(BadInput(f"--set: {name}", _override(text), message) for name, (text, message) in OVERRIDES.items()),
    BadInput("no file", lambda folder: ["compile", "--config", str(folder / "none.toml")], r"no such file; shipped by"),
    BadInput("a folder as file", lambda folder: ["compile", "--config", str(folder)], r"no such file; shipped by name"),
]
