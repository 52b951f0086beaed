"""A draft model beside real ones: dense and streaming, sparse, within one budget."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import sparse_model
import streamed
import tiny

import flashllm
from flashllm.errors import InvalidInput, OutOfBudget
from flashllm.flash import layout
from flashllm.generate import model_memory
from flashllm.generate.events import Stats
from flashllm.llm import LLM
from flashllm.model.loader import load_decoder
from flashllm.model.options import LoadOptions

N_CTX = 64
PROMPT = "what is the capital of france? the capital of france is"


@pytest.fixture(autouse=True)
def _small_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    streamed.small_reads(monkeypatch)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2 MB in about 100 units."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "UNIT_TARGET", 8 << 10)
        return tiny.model_dir(tmp_path_factory.mktemp("wide"), layers=6, ffn=256, vocab=600)


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model with other weights and the same words, of which it needs fewer."""
    return tiny.model_dir(tmp_path_factory.mktemp("other"), layers=1, vocab=600, seed=9, context=48)


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sparse_model.write(tmp_path_factory.mktemp("sparse"))


def told(llm: LLM, temperature: float = 0.0) -> tuple[str, Stats]:
    reply = llm.complete(PROMPT, max_tokens=24, temperature=temperature, seed=5)
    text = reply.result()
    assert reply.stats is not None
    return text, reply.stats


def least(llm: LLM) -> int:
    """The least budget that works."""
    memory = llm._service.memory
    decoder = llm._service.model.decoder
    return decoder.least_budget(kv=memory._beside, taken=memory._taken)


def check(folder: Path, drafts: list[tuple[Path, bool]], **options: Any) -> None:
    """Replies with each draft, within all memory and little, are those without; drafts that are
    the model itself are always right.
    """
    options["threads"] = 1
    with LLM.open(folder, mem_budget=None, n_ctx=N_CTX, **options) as llm:
        expected = [told(llm, temperature)[0] for temperature in (0.0, 1.0)]
    for draft, same in drafts:
        with LLM.open(folder, mem_budget=None, n_ctx=N_CTX, draft=draft, **options) as llm:
            for limit in (None, least(llm) + 300_000, least(llm))[0 if same else 2 :]:
                llm.resize(limit)
                (text, stats), (drawn, _) = told(llm), told(llm, 1.0)
                assert [text, drawn] == expected
                assert stats.guessed_tokens >= stats.accepted_tokens
                if same:
                    assert stats.accepted_tokens == stats.guessed_tokens == 18
                    assert stats.wait_s == 0 or limit is not None
            assert llm._service.model.decoder.streamed_bytes > 0


def test_a_dense_model_streaming(folder: Path, stranger: Path) -> None:
    check(folder, [(folder, True), (stranger, False)])


@pytest.mark.parametrize("how", ["gate", "predictor"])
def test_a_model_that_runs_sparse(how: str, sparse: Path, tmp_path: Path) -> None:
    stranger = tiny.model_dir(tmp_path, layers=1, seed=9)
    check(sparse, [(sparse, how == "gate"), (stranger, False)], sparse=how, window=2)


def test_steps_read_all_weights_once_for_several_tokens(folder: Path) -> None:
    with LLM.open(folder, mem_budget=None, n_ctx=N_CTX, draft=folder) as llm:
        limit = least(llm)
    reads = []
    with LLM.open(folder, mem_budget=limit, n_ctx=N_CTX, draft=folder) as helped:
        reads.append(told(helped)[1].weights_read_per_token)
        held = helped.weight_bytes
    with LLM.open(folder, mem_budget=None, n_ctx=N_CTX) as alone:
        alone.resize(least(alone))
        assert alone.weight_bytes == held
        reads.append(told(alone)[1].weights_read_per_token)
    assert reads[0] < reads[1] / 4


def test_the_draft_is_part_of_the_budget(folder: Path, stranger: Path) -> None:
    with LLM.open(folder, mem_budget=None, n_ctx=N_CTX) as alone:
        without, kv = model_memory.held(), alone._service.memory._beside
        needed = least(alone)
    with LLM.open(folder, mem_budget=None, n_ctx=N_CTX, draft=stranger) as llm:
        draft = llm._service.model.draft
        assert draft is not None
        weights = draft.decoder.resident_bytes + draft.decoder.scratch_bytes
        both = llm._service.memory._beside
        assert kv < both
        assert model_memory.held() == without + weights + both - kv
        assert least(llm) == needed + weights + both - kv
        limit = least(llm)
    assert model_memory.held() == 0
    LLM.open(folder, mem_budget=limit, n_ctx=N_CTX, draft=stranger).close()
    with pytest.raises(OutOfBudget, match="needed"):
        LLM.open(folder, mem_budget=limit - 1, n_ctx=N_CTX, draft=stranger)
    assert model_memory.held() == 0


def test_other_words_are_refused(folder: Path, tmp_path: Path) -> None:
    metadata = tiny.tokenizer_metadata(320)
    tokens = metadata["tokenizer.ggml.tokens"]
    tokens[10], tokens[11] = tokens[11], tokens[10]
    other = tiny.model_dir(tmp_path, metadata={"tokenizer.ggml.tokens": tokens})
    with pytest.raises(InvalidInput, match="same family"):
        LLM.open(folder, n_ctx=N_CTX, draft=other)
    with pytest.raises(flashllm.errors.ModelNotFound):
        flashllm.load(folder, draft="no-such-model")


def test_how_many_tokens_may_be_guessed() -> None:
    for wrong in (
        {"draft_tokens": 0},
        {"draft_tokens": 32},
        {"draft_tokens": 8, "sparse": "gate"},
    ):
        with pytest.raises(InvalidInput, match="choose 1 to"):
            LoadOptions(draft="a", **wrong)  # type: ignore[arg-type]
    options = LoadOptions(draft="a", draft_tokens=7, sparse="gate")
    assert LoadOptions(**options.arguments()) == options
    assert dataclasses.replace(options, sparse=None, draft_tokens=31).draft_tokens == 31


def test_only_what_is_kept_of_a_step_stays(sparse: Path) -> None:
    """With room for both tokens' neurons and a window of one token: that of the first, or both."""
    limit = sparse_model.budget(sparse, "gate", layers=4.5)
    options = LoadOptions(mem_budget=limit, n_ctx=N_CTX, sparse="gate", window=1)
    decoder = load_decoder(sparse, options)
    sequence = decoder.new_sequence(N_CTX)
    read = {}
    for rows in (1, 2):
        for position, token in enumerate((70, 90)):
            sequence.truncate(0)
            decoder.keep_rows(rows)
            decoder.step(sequence, [70, 90], logits="all")
            sequence.truncate(position)
            before = decoder.traffic
            decoder.step(sequence, [token])
            read[rows, token] = (decoder.traffic - before).neuron_bytes
    sequence.close()
    decoder.close()
    assert read[1, 70] == read[2, 70] == read[2, 90] == 0
    assert read[1, 90] > 0
