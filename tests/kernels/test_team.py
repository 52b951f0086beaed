"""The team: every thread does its part once, parked workers wake, an interrupted run recovers."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from flashllm import kernels
from flashllm.errors import EngineError, InvalidInput
from flashllm.kernels import team as team_module
from flashllm.kernels.weights import Activations


def quantizer(backend, rows):
    x = Activations(rows, 64)
    program = backend.program(rows)
    program.quantize(x)
    return x, program


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_many_runs_with_pauses(threads):
    """Runs back to back, then after the workers have parked, more threads than cores included."""
    backend = kernels.load("cpu", threads)
    x, program = quantizer(backend, 7)
    for i in range(1, 400):
        x.values[:] = i
        program.run(7)
        assert (x.codes == 127).all()
        assert np.allclose(x.scales, i / 127)
        if i % 100 == 0:
            wait_until_parked(backend)
    backend.close()


def wait_until_parked(backend):
    deadline = time.monotonic() + 30
    while not all(backend._team._parked):
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize("closed_at_once", [False, True])
@pytest.mark.parametrize("parked", [False, True])
def test_an_interrupt_between_telling_and_joining_is_made_up_for(
    monkeypatch, parked, closed_at_once
):
    backend = kernels.load("cpu", 2)
    x, program = quantizer(backend, 3)
    program.run(3)
    if parked:
        wait_until_parked(backend)

    def interrupted(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(team_module.Team, "_wake_parked", interrupted)
        with pytest.raises(KeyboardInterrupt):
            program.run(3)
    if not closed_at_once:
        x.values[:] = 2
        program.run(3)
        assert np.allclose(x.scales, 2 / 127)
    backend.close()


def test_an_interrupt_just_after_the_walk_leaves_nothing_to_make_up(monkeypatch):
    """A leader that walked the program again would wait for workers that never come."""
    backend = kernels.load("cpu", 2)
    x, program = quantizer(backend, 3)
    program.run(3)
    lead = team_module._lead

    def led_then_interrupted(*args):
        lead(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(team_module, "_lead", led_then_interrupted)
        with pytest.raises(KeyboardInterrupt):
            program.run(3)
    x.values[:] = 4
    program.run(3)
    assert np.allclose(x.scales, 4 / 127)
    backend.close()


def test_closing_stops_the_threads_and_refuses_work():
    before = threading.active_count()
    backend = kernels.load("cpu", 3)
    _, program = quantizer(backend, 1)
    program.run(1)
    assert threading.active_count() == before + 2
    backend.close()
    backend.close()
    assert threading.active_count() == before
    with pytest.raises(EngineError, match="closed"):
        program.run(1)


def test_sizes_are_checked_before_a_kernel_sees_them():
    backend = kernels.load("cpu", 1)
    x, program = quantizer(backend, 4)
    for rows in (0, 5, -1):
        with pytest.raises(InvalidInput, match="rows"):
            program.run(rows)
    small = np.zeros((4, 32), np.float32)
    with pytest.raises(InvalidInput, match="out"):
        program.rms_norm(x.values, np.ones(64, np.float32), 1e-5, small)
    with pytest.raises(InvalidInput, match="contiguous"):
        program.rms_norm(x.values[:, ::2], np.ones(32, np.float32), 1e-5, small)
    backend.close()


def test_unknown_backends_are_refused():
    with pytest.raises(InvalidInput, match="cpu, reference"):
        kernels.load("gpu")
    with pytest.raises(InvalidInput, match="at least 1"):
        kernels.load("cpu", 0)
