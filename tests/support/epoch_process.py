"""The first epoch of a prepared run, trained in a process of its own.

`python -m support.epoch_process ORDER` has an order in JSON: the run's uri, the reference, the scores and `[hardware]`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from spin_components.train_epoch.step import train


def start_epoch(uri: str, reference: str, scores: list[str], hardware: dict[str, Any]) -> subprocess.Popen[bytes]:
    """Start one; killed, it takes its ranks along."""
    order = json.dumps([uri, reference, scores, hardware])
    return subprocess.Popen([sys.executable, "-m", "support.epoch_process", order])


if __name__ == "__main__":
    uri, reference, scores, hardware = json.loads(sys.argv[1])
    train(uri, 0, 0, reference, scores, hardware)
