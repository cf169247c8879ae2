"""Where everything lies below a run's address: relative keys with `/`."""

from __future__ import annotations

RUN = "run.json"
ATTEMPT = "attempt.json"
LEASE = "lease.json"
BEST = "best.json"
LATEST = "latest.json"
DATA = "data"
DATA_MANIFEST = "data/manifest.json"
VALIDATION = "data/validation-00000.parquet"
BASE = -1
"""The iteration number that stands for the base model."""
BASE_VALIDATION = "base/validation.json"
BASE_EVALUATION = "base/evaluation.json"
BUILTIN_MODEL = "inputs/model"
TASKS = "inputs/tasks"
"""The user's own task files, as `prepare` found them."""
EVENTS = "events"
REPORT = "report/index.html"
ADAPTER = "adapter"
"""Folder of an epoch's adapter, beside the policy that it was merged into."""
TRACKING = "tracking"
"""What trackers need to go on where the attempt before ended, and what they keep in the run's storage."""
TENSORBOARD = "tensorboard"


def inputs_manifest(name: str) -> str:
    """Written when what `prepare` made or copied, `inputs/NAME`, is complete."""
    return f"inputs/{name}.json"


def builtin_data(name: str) -> str:
    """A builtin data set as a file, by the setting that names it."""
    return f"inputs/{name}.jsonl"


def train_shard(shard: int) -> str:
    """Prompts and human answers of one shard."""
    return f"{DATA}/train-{shard:05d}.parquet"


def iteration(t: int) -> str:
    """Folder of an iteration."""
    return f"iterations/{t}"


def generations(t: int, shard: int) -> str:
    """Pairs of one shard: the human's answer and the reference's."""
    return f"{iteration(t)}/generations/{shard:05d}.parquet"


def ref_logprobs(t: int, shard: int) -> str:
    """Two float32 sums a pair, under the reference."""
    return f"{iteration(t)}/ref_logprobs/{shard:05d}.parquet"


def manifest_of(parquet: str) -> str:
    """The manifest beside a shard."""
    return parquet.removesuffix(".parquet") + ".json"


def epoch(t: int, e: int) -> str:
    """Folder of an epoch."""
    return f"{iteration(t)}/epochs/{e}"


def epoch_of(policy: str | None) -> tuple[int, int] | None:
    """Iteration and epoch that a policy's key names; None for what no epoch made."""
    match (policy or "").split("/"):
        case ["iterations", t, "epochs", e, "policy"]:
            return int(t), int(e)
    return None


def epoch_manifest(t: int, e: int) -> str:
    """Written when the epoch is complete."""
    return f"{epoch(t, e)}/manifest.json"


def watched(t: int, e: int) -> str:
    """Signs of life of the step that follows a TrainJob."""
    return f"{epoch(t, e)}/watched.json"


def rewards(t: int, e: int) -> str:
    """Rewards of both answers of every pair, as training saw them in an epoch."""
    return f"{epoch(t, e)}/rewards.parquet"


def partial(t: int, e: int) -> str:
    """Pointer to the newest save inside an unfinished epoch."""
    return f"{epoch(t, e)}/partial.json"


def validation(t: int, e: int) -> str:
    """Manifest of the validation after an epoch; iteration `BASE` is the base model."""
    return BASE_VALIDATION if t == BASE else f"{epoch(t, e)}/validation.json"


def validation_losses(t: int, e: int) -> str:
    """Losses of single answers, beside that manifest."""
    return validation(t, e).removesuffix(".json") + ".parquet"


def validation_samples(t: int, e: int) -> str:
    """What the policy answered to held-out prompts, likewise."""
    return validation(t, e).removesuffix(".json") + "-samples.parquet"


def evaluation(t: int) -> str:
    """Manifest of an iteration's evaluation; iteration `BASE` is the base model."""
    return BASE_EVALUATION if t == BASE else f"{iteration(t)}/evaluation.json"


def verdicts(t: int) -> str:
    """What a judge said of single answers, beside that manifest."""
    return evaluation(t).removesuffix(".json") + "-verdicts.parquet"


def checkpoint(t: int) -> str:
    """Manifest that publishes an iteration."""
    return f"{iteration(t)}/checkpoint.json"
