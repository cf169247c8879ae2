"""The exception hierarchy.

SpinError                    base class; the message says where, what was found, what was expected and what to do
├── ConfigError              the command or the configuration is wrong          exit 2
├── DataError                a record, a file or a data set is wrong            exit 2
├── ModelError               a model folder cannot be used                      exit 2
├── InputsChangedError       a finished step was made from other inputs         exit 2
├── BusyError                another process or attempt holds the run           exit 2
├── StorageAccessError       storage denies access                              exit 2
├── ClusterAccessError       KFP denies a request                               exit 2
├── StorageError             storage does not answer or is full                 exit 1
├── ClusterError             KFP or Kubernetes fails a request or is silent     exit 1
├── IntegrityError           an object is missing, truncated or altered         exit 1
├── NonFiniteError           a loss or a gradient is NaN or infinite            exit 1
├── StepZeroError            policy and reference differ before any update      exit 1
├── EngineError              a generation or training engine failed             exit 1
└── AlreadyTrainedError      a run has trained on this data already             exit 4
"""

from __future__ import annotations


class SpinError(Exception):
    """Base class of the project's exceptions.

    Attributes:
        exit_code: exit status of the command line when this error ends it.
        is_passing: whether the same work may succeed if it is begun again.
    """

    exit_code = 1
    is_passing = False


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
    """A finished step was made from inputs that differ from the present ones."""

    exit_code = 2


class BusyError(SpinError):
    """Another process or another attempt holds the run."""

    exit_code = 2


class StorageAccessError(SpinError):
    """Storage denies access: keys, bucket, permission, clock or address are wrong. Not retried."""

    exit_code = 2


class ClusterAccessError(SpinError):
    """KFP denies a request: token, role, namespace, name or address are wrong. Not retried."""

    exit_code = 2


class ClusterError(SpinError):
    """KFP or Kubernetes did not answer within the timeout, or failed a request."""

    is_passing = True


class AlreadyTrainedError(SpinError):
    """Another run trains, or has trained, on the same data, and training on it twice is disabled."""

    exit_code = 4


class StorageError(SpinError):
    """Storage did not answer within the timeout, or is full; the same command resumes the run later."""

    is_passing = True


class IntegrityError(SpinError):
    """A stored object is missing or differs from its manifest's size or digest."""


class NonFiniteError(SpinError):
    """A loss or a gradient is NaN or infinite; raised before the optimizer update."""


class StepZeroError(SpinError):
    """The first loss of an iteration is not that of a policy equal to its reference: ln 2 for the logistic loss."""


class EngineError(SpinError):
    """A generation or training engine failed, or returned fewer results than requested."""

    is_passing = True
