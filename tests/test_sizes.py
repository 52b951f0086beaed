"""Tests of sizes.py: every accepted way to write a size, and a clear no to the rest."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashllm.errors import InvalidInput
from flashllm.sizes import SHARE_OVERHEAD, format_size, parse_size


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("4096", 4096),
        ("6GB", 6 * 10**9),
        ("6gb", 6 * 10**9),
        ("6 G", 6 * 10**9),
        ("512MiB", 512 * 2**20),
        ("512mi", 512 * 2**20),
        ("1.5TiB", 3 * 2**39),
        (".5kb", 500),
    ],
)
def test_bytes(text: str, count: int) -> None:
    assert parse_size(text).resolve(model_bytes=7) == count


def test_a_share_of_the_model_leaves_the_overhead_alone() -> None:
    assert parse_size("0.5x").resolve(model_bytes=1000) == SHARE_OVERHEAD + 500 == 200_000_500
    assert parse_size("2X").resolve(model_bytes=1000) == SHARE_OVERHEAD + 2000


@pytest.mark.parametrize(
    "text", ["", "GB", "-1GB", "1.2.3", "6XB", "0", "0x", "1e9", "inf", "9" * 40]
)
def test_nonsense_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(InvalidInput, match="6GB"):
        parse_size(text)


@given(st.integers(min_value=1, max_value=10**15))
def test_formatting_keeps_three_digits_and_reads_back(count: int) -> None:
    again = parse_size(format_size(count)).resolve(0)
    assert abs(again - count) <= 0.006 * count
