"""Keys of a run's files, relative to the run's address and with `/`."""

from __future__ import annotations

RUN = "run.json"
ATTEMPT = "attempt.json"
LEASE = "lease.json"
LEASES = "leases"
"""Folder with one file for each attempt that took the run over, and one for each step at work."""
WRITING = "leases/.lock"
"""Locked while a file of a run in a folder is compared and replaced."""
BEST = "best.json"
LATEST = "latest.json"
DATA = "data"
DATA_MANIFEST = "data/manifest.json"
VALIDATION = "data/validation-00000.parquet"
RENDERED = "data/rendered"
"""Folder of the records that a `prepare` at work has rendered so far; deleted when it is done."""
RENDERED_MANIFEST = "data/rendered/manifest.json"
BASE = -1
"""Iteration number of the base model."""
WARM_UP = -2
"""Iteration number of the warm-up; those of controls are further below, see `control`."""
CONTROLS = "control"
"""Folder of the controls."""
_CONTROL = -100
WARM_UP_MANIFEST = "warm_up/manifest.json"
"""Manifest of the whole warm-up; each of its epochs has one of its own."""
BASE_VALIDATION = "base/validation.json"
BASE_EVALUATION = "base/evaluation.json"
BUILTIN_MODEL = "inputs/model"
TASKS = "inputs/tasks"
"""Folder of the user's own evaluation task files, copied by `prepare`."""
CHAT_TEMPLATE = "inputs/chat_template.jinja"
"""Copy of the file that `data.chat_template` names."""
EVENTS = "events"
REPORT = "report/index.html"
ADAPTER = "adapter"
"""Name of the folder with an epoch's adapter, next to the merged policy."""
TRACKING = "tracking"
"""Folder of the trackers' state across attempts, and of files that they write to the run's storage."""
TENSORBOARD = "tensorboard"


def lease(number: int) -> str:
    """File that is created once, by the attempt that takes the run over with a number."""
    return f"{LEASES}/{number:08d}.json"


def steps_at_work(number: int) -> str:
    """Folder with one file for each step at work of an attempt."""
    return f"{LEASES}/{number:08d}"


def inputs_manifest(name: str) -> str:
    """Manifest of `inputs/NAME`, which `prepare` created or copied."""
    return f"inputs/{name}.json"


def builtin_data(name: str) -> str:
    """File of a builtin data set, by the setting that selects it."""
    return f"inputs/{name}.jsonl"


def train_shard(shard: int) -> str:
    """Parquet file with the prompts and human answers of one shard."""
    return f"{DATA}/train-{shard:05d}.parquet"


def rendered_part(number: int) -> str:
    """Arrow file with rendered records, in the order of the data."""
    return f"{RENDERED}/{number:05d}.arrow"


def control(t: int) -> int:
    """Iteration number of the control of iteration t, which trains as often as that on the human answers alone."""
    return _CONTROL - t


def controlled(number: int) -> int | None:
    """The iteration whose control has this number; None where it is no control's."""
    return _CONTROL - number if number <= _CONTROL else None


def iteration(t: int) -> str:
    """Folder of an iteration, of the warm-up (`WARM_UP`), or of a control."""
    if t == WARM_UP:
        return "warm_up"
    return f"iterations/{t}" if (of := controlled(t)) is None else f"{CONTROLS}/{of}"


def generations(t: int, shard: int) -> str:
    """Parquet file with the pairs of one shard: a human answer and a generated one each."""
    return f"{iteration(t)}/generations/{shard:05d}.parquet"


def ref_logprobs(t: int, shard: int) -> str:
    """Parquet file with the reference's log-probabilities of one shard: two float32 sums per pair."""
    return f"{iteration(t)}/ref_logprobs/{shard:05d}.parquet"


def manifest_of(parquet: str) -> str:
    """Manifest of a shard's Parquet file."""
    return parquet.removesuffix(".parquet") + ".json"


def epoch(t: int, e: int) -> str:
    """Folder of an epoch."""
    return f"{iteration(t)}/epochs/{e}"


def epoch_of(policy: str | None) -> tuple[int, int] | None:
    """Iteration and epoch in the key of a policy; None for any other key."""
    match (policy or "").split("/"):
        case ["iterations", t, "epochs", e, "policy"] if is_number(t) and is_number(e):
            return int(t), int(e)
        case ["control", t, "epochs", e, "policy"] if is_number(t) and is_number(e):
            return control(int(t)), int(e)
        case ["warm_up", "epochs", e, "policy"] if is_number(e):
            return WARM_UP, int(e)
    return None


def is_number(text: str) -> bool:
    """Whether a part of a key is the number of an iteration, epoch or shard."""
    return text.isascii() and text.isdigit() and len(text) <= 9


def epoch_manifest(t: int, e: int) -> str:
    """Manifest of an epoch."""
    return f"{epoch(t, e)}/manifest.json"


def watched(t: int, e: int) -> str:
    """Heartbeat of the step that runs a TrainJob."""
    return f"{epoch(t, e)}/watched.json"


def rewards(t: int, e: int) -> str:
    """Parquet file with the rewards of both answers of every pair, computed while training an epoch."""
    return f"{epoch(t, e)}/rewards.parquet"


def partial(t: int, e: int) -> str:
    """Pointer to the newest save within an unfinished epoch."""
    return f"{epoch(t, e)}/partial.json"


def validation(t: int, e: int) -> str:
    """Manifest of the validation after an epoch; iteration `BASE` is the base model."""
    return BASE_VALIDATION if t == BASE else f"{epoch(t, e)}/validation.json"


def validation_losses(t: int, e: int) -> str:
    """Parquet file with the loss of each held-out answer, next to the manifest of the validation."""
    return validation(t, e).removesuffix(".json") + ".parquet"


def validation_samples(t: int, e: int) -> str:
    """Parquet file with the policy's answers to held-out prompts, next to the manifest of the validation."""
    return validation(t, e).removesuffix(".json") + "-samples.parquet"


def measures_of(validation_manifest: str) -> str:
    """Parquet file with measures of a policy's answers to held-out prompts, next to the validation's manifest."""
    return validation_manifest.removesuffix(".json") + "-answers.parquet"


def evaluation(t: int) -> str:
    """Manifest of the evaluation of an iteration, of the base model, of the warm-up or of a control."""
    return BASE_EVALUATION if t == BASE else f"{iteration(t)}/evaluation.json"


def judge_scores(t: int) -> str:
    """Parquet file with the judge's score of each answer, next to the manifest of the evaluation."""
    return evaluation(t).removesuffix(".json") + "-verdicts.parquet"


def document_values(t: int) -> str:
    """Parquet file with the metrics of each document of the tasks, next to the manifest of the evaluation."""
    return evaluation(t).removesuffix(".json") + "-documents.parquet"


def checkpoint(t: int) -> str:
    """Manifest of an iteration's checkpoint step, which ends the iteration."""
    return f"{iteration(t)}/checkpoint.json"


def control_manifest(t: int) -> str:
    """Manifest of the whole control of iteration t."""
    return f"{iteration(control(t))}/manifest.json"
