"""A signal while the engine starts is never missed, whatever became of the exception that it raised."""

from __future__ import annotations

import contextlib
import os
import signal

import pytest
import typer

from cli.up import unwound_by_signals


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_unwinds_what_was_started_and_ends_with_exit_code_0(sig: signal.Signals) -> None:
    with pytest.raises(typer.Exit) as ended, unwound_by_signals():
        os.kill(os.getpid(), sig)
    assert ended.value.exit_code == 0


def test_a_signal_whose_exception_was_dropped_stops_the_start_at_its_next_step() -> None:
    went_on = []

    def start() -> None:
        with unwound_by_signals() as stopped:
            with contextlib.suppress(KeyboardInterrupt):  # as Python does in a callback of its own
                os.kill(os.getpid(), signal.SIGTERM)
            stopped.look()
            went_on.append(True)

    with pytest.raises(typer.Exit):
        start()
    assert not went_on


def test_a_second_signal_does_not_cut_the_unwinding_short_and_handlers_are_put_back() -> None:
    before, unwound = signal.getsignal(signal.SIGTERM), []

    def start() -> None:
        with unwound_by_signals():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                os.kill(os.getpid(), signal.SIGTERM)
                unwound.append(True)

    with pytest.raises(typer.Exit):
        start()
    assert unwound
    assert signal.getsignal(signal.SIGTERM) is before
