"""Every error this project raises on purpose.

SpinError                    a run cannot go on; the message says where, what, and what to do
├── ConfigError              the command or the configuration is wrong          exit 2
├── DataError                a record, a file or a data set is wrong            exit 2
├── ModelError               a model folder cannot be used                      exit 2
├── InputsChangedError       a finished step was made from other inputs         exit 2
├── BusyError                another runner is at work on the run              exit 2
├── StorageAccessError       storage refuses what the run needs                exit 2
├── ClusterAccessError       KFP refuses a request                             exit 2
├── StorageError             storage does not answer, or has no room           exit 1
├── ClusterError             KFP or Kubernetes does not answer a request        exit 1
├── IntegrityError           an object is missing, truncated or altered         exit 1
├── NonFiniteError           a loss or a gradient is NaN or infinite            exit 1
├── StepZeroError            policy and reference differ before any update      exit 1
├── EngineError              a generation or training engine failed             exit 1
└── AlreadyTrainedError      a run has trained on this data already             exit 4
"""

from __future__ import annotations


class SpinError(Exception):
    """Base of the tree; `exit_code` is what the command line ends with."""

    exit_code = 1


class ConfigError(SpinError):
    """A setting is missing, unknown, of the wrong type or out of range."""

    exit_code = 2


class DataError(SpinError):
    """Training or validation data cannot be used as it is."""

    exit_code = 2


class ModelError(SpinError):
    """A model or tokenizer cannot be loaded from where the configuration points."""

    exit_code = 2


class InputsChangedError(SpinError):
    """A finished step exists that was made from other inputs."""

    exit_code = 2


class BusyError(SpinError):
    """Another runner, or another attempt, is at work on the run."""

    exit_code = 2


class StorageAccessError(SpinError):
    """Storage refuses: keys, bucket, permission, clock or address are wrong; trying again does not help."""

    exit_code = 2


class ClusterAccessError(SpinError):
    """KFP refuses: token, role, namespace, name or address are wrong; trying again does not help."""

    exit_code = 2


class ClusterError(SpinError):
    """KFP, or Kubernetes, did not answer in the time allowed."""


class AlreadyTrainedError(SpinError):
    """A finished or unfinished run has this very data, and it was asked not to train on it twice."""

    exit_code = 4


class StorageError(SpinError):
    """Storage did not answer in the time allowed, or is full; the same command goes on once it does."""


class IntegrityError(SpinError):
    """A stored object differs from what its manifest says."""


class NonFiniteError(SpinError):
    """A loss or a gradient is NaN or infinite; nothing was updated with it."""


class StepZeroError(SpinError):
    """The first loss of an iteration is not ln 2, or what its objective makes of equal models: these two differ."""


class EngineError(SpinError):
    """A generation or training engine failed or returned less than was asked for."""
