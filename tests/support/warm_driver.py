"""The driver of a run, in a fork of a `WarmPython`: its parent is the server, which ends it with its caller."""

from __future__ import annotations

import os
import sys

from spin_pipeline.local.driver import main

if __name__ == "__main__":
    sys.exit(main(os.getppid()))
