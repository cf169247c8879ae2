from __future__ import annotations

import os
import signal
import threading

import pytest

from spin_components.runtime.signals import Interrupted, interruptible, uninterrupted

ENDING = (signal.SIGINT, signal.SIGTERM)


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_is_an_exception_with_its_number(number: signal.Signals) -> None:
    with pytest.raises(Interrupted, match=number.name) as caught, interruptible():
        os.kill(os.getpid(), number)
    assert caught.value.number == number


def test_whatever_handles_ctrl_c_handles_it() -> None:
    with pytest.raises(KeyboardInterrupt), interruptible():
        os.kill(os.getpid(), signal.SIGTERM)


def test_cleaning_up_is_not_interrupted() -> None:
    cleaned = False
    with pytest.raises(Interrupted), interruptible():
        try:
            os.kill(os.getpid(), signal.SIGINT)
        finally:
            with uninterrupted():
                for number in ENDING:
                    os.kill(os.getpid(), number)
                cleaned = True
    assert cleaned


def test_after_the_block_signals_do_what_they_did_before() -> None:
    before = [signal.getsignal(number) for number in ENDING]
    with interruptible(), uninterrupted():
        assert [signal.getsignal(number) for number in ENDING] == [signal.SIG_IGN, signal.SIG_IGN]
    assert [signal.getsignal(number) for number in ENDING] == before


def test_in_another_thread_nothing_changes() -> None:
    def enter() -> None:
        with interruptible():
            handlers.extend(signal.getsignal(number) for number in ENDING)

    handlers: list[object] = []
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(number) for number in ENDING]
