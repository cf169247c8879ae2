"""Container images of the components, named when a pipeline is compiled."""

import os

from spin_components import __version__

_PREFIX = os.environ.get("SPIN_IMAGE_PREFIX", "spin-pipelines")

CPU = f"{_PREFIX}/cpu:{__version__}"
GENERATE = f"{_PREFIX}/generate:{__version__}"
TRAIN = f"{_PREFIX}/train:{__version__}"
