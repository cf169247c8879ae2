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

import re

MAX_LINE = 1200
"""Length, in characters, from which a line of a message is shortened in its middle."""

_LOGIN = re.compile(
    r"""(?<=://)(?:[^/\s'"@:]+:(?!\d+(?:[/\s'"]|$))[^\s'"]*|(?<=https://)[^/\s'"]+|(?<=http://)[^/\s'"]+)@"""
)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def clean(message: str) -> str:
    """Make a message fit to be shown and stored.

    The login in an address (`user:key@`) becomes `***@`, a control character or half a surrogate pair its escape, and
    of a line that is longer than `MAX_LINE` the middle is left out: values that are quoted in a message may hold
    anything, and be of any size.
    """
    return "\n".join(_clean_line(line) for line in message.split("\n"))


def _clean_line(line: str) -> str:
    head, tail = MAX_LINE * 2 // 3, MAX_LINE // 4
    num_left_out = len(line) - head - tail if len(line) > MAX_LINE else 0
    if len(line) > 20 * MAX_LINE:  # its middle is not shown in any case
        line = f"{line[: 10 * MAX_LINE]} {line[-10 * MAX_LINE :]}"
    line = _CONTROL.sub(lambda match: repr(match.group())[1:-1], _LOGIN.sub("***@", line))
    if not num_left_out:
        return line
    return f"{line[:head]} … ({num_left_out} characters left out) … {line[-tail:]}"


class SpinError(Exception):
    """Base class of the project's exceptions; their messages are cleaned, see `clean`.

    Attributes:
        exit_code: exit status of the command line when this error ends it.
        is_passing: whether the same work may succeed if it is begun again.
    """

    exit_code = 1
    is_passing = False

    def __init__(self, *arguments: object) -> None:
        super().__init__(*(clean(each) if isinstance(each, str) else each for each in arguments))


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
