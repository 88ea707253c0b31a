"""Interrupts as requests."""

import signal

import pytest

from cid.train.run.signals import StopRequest


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_handlers_come_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert stop.signal_number is None
        signal.raise_signal(number)
        assert stop.signal_number == number
        assert signal.getsignal(number) == before  # a second one would end the process
    assert signal.getsignal(number) == before
