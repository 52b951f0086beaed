"""Tests of what a reply says it cost, on models that stream."""

from __future__ import annotations

from pathlib import Path

import pytest
import sparse_model
import streamed
import tiny

from flashllm.flash.format import read_model
from flashllm.llm import LLM
from flashllm.model import loader
from flashllm.model.memory import FIXED_BYTES, kv_bytes

N_CTX = 64
WIDE = {"layers": 6, "hidden": 128, "ffn": 512, "vocab": 600}
"""Larger than the stage and the few rows that streaming takes at least."""


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.model_dir(tmp_path_factory.mktemp("wide"), tied=request.param, **WIDE)


@pytest.fixture(autouse=True)
def reads_as_small_as_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    streamed.small_reads(monkeypatch)


def budget(folder: Path, weights: int) -> int:
    """Bytes that leave so many for the weights, beside all else."""
    with LLM.open(folder, mem_budget=None, n_ctx=N_CTX, backend="reference") as llm:
        scratch = llm._service.model.decoder.scratch_bytes
        return FIXED_BYTES + scratch + kv_bytes(llm.config, N_CTX, llm.kv_dtype) + weights


def test_a_streaming_reply_reads_what_does_not_stay_once_a_token(folder: Path) -> None:
    limit = budget(folder, 4_500_000)
    with LLM.open(folder, mem_budget=limit, n_ctx=N_CTX, backend="reference") as llm:
        decoder = llm._service.model.decoder
        assert decoder.streamed_bytes > 0
        reply = llm.complete("the capital of france", max_tokens=6, temperature=0.0)
        reply.result()
        stats = reply.stats
        assert stats is not None
        embed = read_model(folder).groups["embed"]
        rows = int(embed.offsets[-1])
        scanned = decoder.streamed_bytes
        looked_up = stats.weights_read_bytes - 6 * scanned
        assert stats.generated_tokens == 6
        assert 0 < looked_up <= rows
        assert scanned <= stats.weights_read_per_token <= scanned + rows / 5
        assert 0 < stats.hit_rate < 1
        assert stats.wait_s > 0
        assert stats.mem_budget == limit


def test_a_resident_reply_reads_nothing(folder: Path) -> None:
    with LLM.open(folder, mem_budget=None, n_ctx=N_CTX, backend="reference") as llm:
        reply = llm.complete("the capital of france", max_tokens=6, temperature=0.0)
        reply.result()
        stats = reply.stats
    assert stats is not None
    assert (stats.weights_read_bytes, stats.weights_read_per_token) == (0, 0.0)
    assert (stats.hit_rate, stats.wait_s) == (1.0, 0.0)
    assert stats.compute_s > 0
    assert stats.mem_budget is None
    assert (stats.active_share, stats.neurons_read_per_token, stats.manage_s) == (None, 0.0, 0.0)


def test_a_sparse_reply_tells_how_many_neurons_it_computed_and_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "read_gap", lambda curve: 0)
    sparse = sparse_model.write(tmp_path, calibrated=False)
    replies = {}
    for window in (0, 8):
        limit = sparse_model.budget(sparse, "gate", layers=3.5)
        with LLM.open(sparse, mem_budget=limit, n_ctx=N_CTX, sparse="gate", window=window) as llm:
            assert llm.sparse == "gate"
            reply = llm.complete("the capital of france", max_tokens=6, temperature=0.0)
            reply.result()
            replies[window] = reply.stats
    alone, kept = replies[0], replies[8]
    assert alone is not None
    assert kept is not None
    assert alone.active_share == kept.active_share
    assert 0.3 < (alone.active_share or 0) < 0.7
    neurons = sum(
        int(group.offsets[-1]) for name, group in read_model(sparse).groups.items() if "ffn" in name
    )
    assert 0 < kept.neurons_read_per_token < alone.neurons_read_per_token <= neurons
    assert alone.neurons_read_per_token <= alone.weights_read_per_token
    assert 0 < alone.manage_s < alone.compute_s
