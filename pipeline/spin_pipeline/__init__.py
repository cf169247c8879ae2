"""SPIN as a Kubeflow pipeline: configuration, the DAG, and the command line."""

from spin_components import __version__

__all__ = ["__version__"]
