"""The fixed list of faults: all kinds, at every step."""

from __future__ import annotations

from faults.plans import SECOND_EPOCH, Fault

_EPOCH = "/bucket/run/iterations/0/epochs"
_PART = r"policy/model\.safetensors\?partNumber"
_COMPLETE = r"\?uploadId"

NETWORK_FAULTS = [
    # prepare
    Fault("silence", where=r"PUT .*\.probe"),
    Fault("drop", where=r"GET /bucket/base/model\.safetensors", times=3),
    Fault("slow down", where=r"PUT .*/data/manifest\.json", times=3),
    Fault("truncate answer", where=r"list-type=2.*prefix=base"),
    # the base is validated
    Fault("lose answer", "validate-base", r"PUT .*/base/validation\.json"),
    # generate
    Fault("truncate answer", "generate", r"GET /bucket/run/data/train-00000\.parquet"),
    Fault("lose answer", "generate", r"PUT .*/generations/00000\.json"),
    # ref-logprob
    Fault("flip answer", "ref-logprob", r"GET .*/generations/00000\.parquet"),
    Fault("flip request", "ref-logprob", r"PUT .*/ref_logprobs/00000\.parquet"),
    # train-epoch
    Fault("cut request", "train-epoch", f"PUT {_EPOCH}/0/partial/1/{_PART}=3"),
    Fault("lose answer", "train-epoch", rf"POST {_EPOCH}/0/policy/model\.safetensors\?uploads"),
    Fault("lose answer", "train-epoch", rf"POST {_EPOCH}/0/policy/model\.safetensors{_COMPLETE}"),
    Fault("slow down", "train-epoch", r"PUT .*optimizer-00000\.safetensors\?partNumber", times=6),
    Fault("lose answer", "train-epoch", rf"PUT {_EPOCH}/0/manifest\.json"),
    Fault("lose answer", "train-epoch", r"POST /bucket\?delete="),
    Fault("truncate answer", "inside-epoch", rf"GET {_EPOCH}/0/partial/1/trainer/optimizer"),
    Fault("flip answer", "train-epoch-1", rf"GET {_EPOCH}/0/trainer/optimizer-00000\.safetensors"),
    # validate
    Fault("truncate answer", "validate", rf"GET {_EPOCH}/0/policy/model\.safetensors", times=2),
    # checkpoint
    Fault("lose answer", "checkpoint", r"PUT .*/checkpoint\.json"),
    Fault("delay", "checkpoint", r"PUT .*/latest\.json"),
    Fault("drop", "checkpoint", r"PUT .*/best\.json"),
    Fault("internal error", "checkpoint", r"POST /bucket\?delete=", times=3),
    # at every step
    Fault("slow down", where=r"PUT .*/lease\.json", skip=2, times=2),
    Fault("drop", "checkpoint", r"PUT .*/events/", times=4),
]

KILLS = [
    Fault("kill worker in mid-answer", where=r"GET /bucket/base/model\.safetensors"),
    Fault("kill worker before", where=r"PUT .*/data/manifest\.json"),
    Fault("kill worker after", "generate", r"PUT .*/generations/00000\.json"),
    Fault("kill worker in mid-request", "train-epoch", f"PUT {_EPOCH}/0/partial/2/{_PART}=3"),
    Fault("kill worker after", "train-epoch", rf"PUT {_EPOCH}/0/partial\.json", skip=1),
    Fault("kill worker before", "train-epoch", rf"POST {_EPOCH}/0/policy/model\.safetensors{_COMPLETE}"),
    Fault("kill worker after", "train-epoch", rf"PUT {_EPOCH}/0/manifest\.json"),
    Fault("kill worker in mid-answer", "inside-epoch", rf"GET {_EPOCH}/0/partial/1/trainer/optimizer"),
    Fault("kill worker in mid-request", "train-epoch-1", rf"PUT {_EPOCH}/1/trainer/optimizer.*partNumber=5"),
    Fault("kill worker after", "validate", rf"PUT {_EPOCH}/0/validation\.parquet"),
    Fault("kill worker after", "checkpoint", r"PUT .*/checkpoint\.json"),
    Fault("kill worker before", "checkpoint", r"PUT .*/best\.json"),
    Fault("kill worker before", "checkpoint", r"POST /bucket\?delete="),
    Fault("kill worker at a moment", moment_s=0.3),
    Fault("kill worker at a moment", "train-epoch", moment_s=0.9),
    Fault("kill server in mid-request", "train-epoch", f"PUT {_EPOCH}/0/{_PART}=3"),
    Fault("kill server before", "train-epoch", rf"POST {_EPOCH}/0/partial/1/policy/model\.safetensors{_COMPLETE}"),
    Fault("kill server after", "checkpoint", r"PUT .*/checkpoint\.json"),
    Fault("kill server in mid-answer", "validate", rf"GET {_EPOCH}/0/policy/model\.safetensors"),
    Fault("kill server in mid-answer", where=r"GET /bucket/base/model\.safetensors"),
]

DAMAGES = [
    Fault("flip", "generate", "data/train-00000.parquet", skip=700),
    Fault("delete", "ref-logprob", "iterations/0/generations/00000.parquet"),
    Fault("flip", "train-epoch", "iterations/0/ref_logprobs/00000.parquet", skip=99),
    Fault("truncate", "train-epoch", "iterations/0/generations/00000.json"),
    Fault("flip", "inside-epoch", "iterations/0/epochs/0/partial/1/policy/model.safetensors", skip=400_000),
    Fault("garble", "inside-epoch", "iterations/0/epochs/0/partial.json"),
    Fault("truncate", "inside-epoch", "iterations/0/epochs/0/partial.json"),
    Fault("flip", "validate", "iterations/0/epochs/0/policy/model.safetensors", skip=300_000),
    Fault("garble", "validate", "iterations/0/epochs/0/manifest.json"),
    Fault("delete", "train-epoch-1", "iterations/0/epochs/0/trainer/optimizer-00000.safetensors"),
    Fault("flip", "train-epoch-1", "iterations/0/epochs/0/trainer/rng.safetensors", skip=2000),
    Fault("truncate", "checkpoint", "iterations/0/epochs/1/policy/model.safetensors"),
    Fault("delete", "checkpoint", "iterations/0/epochs/1/validation.json"),
    Fault("flip", "generate", "run.json", mark='"seed": '),
    Fault("flip", "train-epoch", "run.json", mark='"lr": 0.00'),
    Fault("flip", "generate", "data/manifest.json", mark='"eos_ids": [\n      '),
    Fault("flip", "inside-epoch", "iterations/0/epochs/0/partial.json", mark='"done": '),
    Fault("flip", "train-epoch-1", "iterations/0/epochs/0/manifest.json", mark='"state": {\n      "step": '),
    Fault("truncate", "checkpoint", "run.json"),
    Fault("garble", "checkpoint", "run.json"),
    Fault("delete", "checkpoint", "run.json"),
    Fault("garble", "checkpoint", "lease.json"),
    Fault("truncate", "checkpoint", "lease.json"),
    Fault("damage cache", "train-epoch", warm=True),
    Fault("damage cache", "checkpoint", warm=True),
]

FULL_DISKS = [
    Fault("full disk", size=400),
    Fault("full disk", size=3500),
    Fault("full disk", storage="files", size=24),
    Fault("full disk", storage="files", size=1400),
    Fault("full disk", storage="files", size=3200),
]

ON_FILES = [
    Fault("kill worker", "data/train-00000.parquet", storage="files"),
    Fault("kill worker", "iterations/0/generations/00000.parquet", storage="files"),
    Fault("kill worker", "iterations/0/epochs/0/partial/2/policy", storage="files"),
    Fault("kill worker", "iterations/0/epochs/1/policy", storage="files"),
    Fault("kill worker", "iterations/0/checkpoint.json", storage="files"),
    Fault("flip", "iterations/0/generations/00000.json", "iterations/0/generations/00000.parquet", 99, storage="files"),
    Fault(
        "truncate",
        "iterations/0/epochs/0/manifest.json",
        "iterations/0/epochs/0/policy/model.safetensors",
        storage="files",
    ),
]

_IN_STORAGE = [*NETWORK_FAULTS, *KILLS, *DAMAGES]
IN_ONE_EPOCH = [fault for fault in _IN_STORAGE if fault.step not in SECOND_EPOCH]
"""Those that a run of one epoch shows: it goes through the same code once after the fault, not twice."""
IN_TWO_EPOCHS = [*(fault for fault in _IN_STORAGE if fault.step in SECOND_EPOCH), *FULL_DISKS, *ON_FILES]
"""The others: at the second epoch, and where the size of two epochs' files matters."""
