"""Names of KFP's callers without a search for their source code."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager


def stack_without_source(context: int = 0) -> list[inspect.FrameInfo]:
    """Return the frames of `inspect.stack()`, without lines of source; `context` has no effect."""
    frame, frames = inspect.currentframe(), list[inspect.FrameInfo]()
    while frame is not None and (frame := frame.f_back) is not None:
        code = frame.f_code
        frames.append(inspect.FrameInfo(frame, code.co_filename, frame.f_lineno, code.co_name, None, None))
    return frames


@contextmanager
def callers_without_source() -> Iterator[None]:
    """Replace `inspect.stack` by `stack_without_source` while a pipeline is built.

    KFP calls it for each property of a task that is set, to have a name for an error's message, and it reads the source
    of every frame: two seconds for the pipeline of the demo. KFP has no setting for it.
    """
    stack = inspect.stack
    inspect.stack = stack_without_source
    try:
        yield
    finally:
        inspect.stack = stack
