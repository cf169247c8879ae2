"""Default container images of the components; `[cluster]` overrides them when a pipeline is compiled."""

from spin_components import __version__

CPU = f"spin-pipelines/cpu:{__version__}"
GENERATE = f"spin-pipelines/generate:{__version__}"
TRAIN = f"spin-pipelines/train:{__version__}"
