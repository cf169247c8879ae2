"""KFP's errors name the caller, also where its frames are read without source."""

import inspect

import pytest
from kfp import dsl

from spin_pipeline.deploy.caller_names import callers_without_source, stack_without_source


def test_the_frames_are_those_of_inspect() -> None:
    places = [[frame[1:4] for frame in stack()] for stack in (inspect.stack, stack_without_source)]
    assert places[0] == places[1]


def test_an_error_names_the_method_and_the_stack_is_put_back() -> None:
    @dsl.pipeline  # type: ignore[untyped-decorator]
    def inner() -> None:
        dsl.importer(artifact_uri="gs://bucket/file", artifact_class=dsl.Dataset)

    stack = inspect.stack
    with pytest.raises(ValueError, match=r"^set_cpu_limit can only be used on single-step"), callers_without_source():

        @dsl.pipeline  # type: ignore[untyped-decorator]
        def outer() -> None:
            inner().set_cpu_limit("1")

    assert inspect.stack is stack
