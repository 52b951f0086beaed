"""Giving freed memory back."""

from __future__ import annotations

import sys

import pytest

from flashllm import heap, machine


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc has to be asked")
def test_what_was_freed_goes_back_to_the_system() -> None:
    pieces = [bytes(50_000) for _ in range(2000)]  # too small to be mapped one by one
    kept = pieces[::200]
    held = machine.private_rss()
    del pieces
    heap.trim()
    assert held - machine.private_rss() > 60_000_000
    assert all(piece == bytes(50_000) for piece in kept)


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    heap.trim()
