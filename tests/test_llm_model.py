"""Tests of LLM over a tiny model's real files and kernels."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tiny

import flashllm
from flashllm.errors import (
    Cancelled,
    CorruptModel,
    FlashError,
    InvalidInput,
    ModelNotFound,
    OutOfBudget,
)
from flashllm.generate.events import Prefill, Token
from flashllm.llm import LLM

QUESTION = "what is the capital of france? " * 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.model_dir(tmp_path_factory.mktemp("model"), context=512, gguf_dtype="Q4_1")


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with LLM.open(folder, threads=2) as opened:
        yield opened


def answer(llm: LLM, *questions: str) -> list[str]:
    """The replies of a fresh session to questions in turn."""
    chat = llm.session(seed=3, max_tokens=12)
    return [chat.ask(question) for question in questions]


def test_turns_on_a_warm_cache_equal_turns_read_afresh(llm: LLM) -> None:
    chat = llm.session(seed=3, max_tokens=12)
    for question in ("one", QUESTION, "three"):
        before = chat.messages
        reply = chat.stream(question)
        fresh = llm.session(messages=before, seed=3, max_tokens=12).stream(question)
        assert reply.result() == fresh.result()
        assert reply.stats is not None and fresh.stats is not None
        assert reply.stats.prompt_tokens == fresh.stats.prompt_tokens
        assert bool(reply.stats.cached_tokens) == bool(before)


@pytest.mark.parametrize("after", [1, 2, 3, 5, 8])
def test_cancel_at_many_points_then_go_on(after: int, llm: LLM) -> None:
    chat = llm.session(seed=3)
    reply = chat.stream(QUESTION, max_tokens=40)
    for _ in itertools.islice(reply, after):
        pass
    reply.cancel()
    reply.result()
    kept = chat.messages
    assert kept[-1].content == reply.text
    follow_up = chat.ask("next", max_tokens=12)
    assert follow_up == llm.session(messages=kept, seed=3, max_tokens=12).ask("next")


def test_cancel_in_the_prompt_of_the_first_layer(llm: LLM) -> None:
    chat = llm.session(seed=3)
    reply = chat.stream(QUESTION * 4, max_tokens=400)
    event = next(iter(reply))
    reply.cancel()
    reply.result()
    assert isinstance(event, Prefill)
    assert reply.reason in ("cancelled", "context")


def test_eight_threads_get_what_each_gets_alone(llm: LLM) -> None:
    questions = [(f"question {i}", "and then?") for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda pair: answer(llm, *pair), questions))
    assert together == [answer(llm, *pair) for pair in questions]


def test_threads_and_chunks_change_nothing(folder: Path, llm: LLM) -> None:
    with LLM.open(folder, threads=1) as other:
        assert answer(other, "hello", QUESTION) == answer(llm, "hello", QUESTION)


def test_a_saved_session_goes_on_bit_for_bit(llm: LLM, tmp_path: Path) -> None:
    chat = llm.session(seed=3, max_tokens=12)
    chat.ask(QUESTION)
    chat.save(tmp_path / "talk.safetensors")
    loaded = llm.load_session(tmp_path / "talk.safetensors", seed=3, max_tokens=12)
    reply = loaded.stream("next")
    assert reply.result() == chat.ask("next")
    assert reply.stats is not None
    assert reply.stats.cached_tokens > 20


def test_another_backends_session_is_read_anew(folder: Path, llm: LLM, tmp_path: Path) -> None:
    chat = llm.session(seed=3, max_tokens=4)
    chat.ask("hello")
    chat.save(tmp_path / "talk.safetensors")
    with LLM.open(folder, backend="reference") as slow:
        loaded = slow.load_session(tmp_path / "talk.safetensors", max_tokens=4)
        reply = loaded.stream("next")
        reply.result()
        assert reply.stats is not None
        assert reply.stats.cached_tokens == 0
        assert loaded.messages[:2] == chat.messages


def test_a_session_is_restored_in_the_dtype_it_was_saved_in(
    folder: Path, llm: LLM, tmp_path: Path
) -> None:
    for kv_dtype, other in (("f16", "f32"), ("f32", "q8"), ("q8", "f16")):
        path = tmp_path / kv_dtype
        with LLM.open(folder, kv_dtype=kv_dtype) as first:  # type: ignore[arg-type]
            chat = first.session(seed=3, max_tokens=4)
            chat.ask("hello")
            chat.save(path)
            reply = first.load_session(path, max_tokens=4).stream("next")
            reply.result()
            assert reply.stats is not None
            assert reply.stats.cached_tokens > 0
        with (
            LLM.open(folder, kv_dtype=other) as second,  # type: ignore[arg-type]
            pytest.raises(InvalidInput, match=f"'{kv_dtype}'.*'{other}'"),
        ):
            second.load_session(path)


def test_keys_and_values_in_f32_are_exact_and_take_twice_the_room(tmp_path: Path) -> None:
    """With weights in f32 only the halves of keys and values are between the backends."""
    folder = tiny.model_dir(tmp_path, dtype="keep")
    with flashllm.load(folder, backend="reference") as llm:
        assert llm.kv_dtype == "f32"
        exact = llm.score(tiny.CORPUS).perplexity
        expected = llm.complete("the sky", temperature=0, max_tokens=20).result()
    told: dict[str, tuple[float, int]] = {}
    for kv_dtype in ("f16", "f32"):
        with flashllm.load(folder, kv_dtype=kv_dtype, n_ctx=64) as llm:  # type: ignore[arg-type]
            assert llm.kv_dtype == kv_dtype
            session = llm.session()
            told[kv_dtype] = abs(llm.score(tiny.CORPUS).perplexity / exact - 1), llm.kv_bytes
            session.close()
            assert llm.complete("the sky", temperature=0, max_tokens=20).result() == expected
    assert told["f32"][0] < 1e-5
    assert told["f32"][0] < told["f16"][0] < 1e-2
    assert told["f32"][1] == 2 * told["f16"][1]
    with pytest.raises(InvalidInput, match="'q3'"):
        flashllm.load(folder, kv_dtype="q3")  # type: ignore[arg-type]


def test_stop_texts_and_whole_characters(llm: LLM) -> None:
    reply = llm.session(seed=3).stream("hello", max_tokens=60, stop=["e"])
    pieces = [event.text for event in reply if isinstance(event, Token)]
    assert "" not in pieces
    assert "e" not in reply.text


def test_scores_of_both_backends_are_close(folder: Path, llm: LLM) -> None:
    with LLM.open(folder, backend="reference") as slow:
        ours, theirs = llm.score(tiny.CORPUS), slow.score(tiny.CORPUS)
    assert ours.tokens == theirs.tokens
    assert ours.perplexity == pytest.approx(theirs.perplexity, rel=0.02)  # int8 activations


def test_a_budget_too_small_is_refused_with_the_figures(folder: Path) -> None:
    with pytest.raises(OutOfBudget, match=r"are needed .* but the budget is 100 MB"):
        LLM.open(folder, mem_budget="100MB")
    with LLM.open(folder, mem_budget="4GB", n_ctx=64) as llm:
        assert llm.mem_budget == 4_000_000_000
        assert llm.session().n_ctx == 64


def test_a_load_that_is_interrupted_leaves_nothing(folder: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise Cancelled("enough")

    with pytest.raises(Cancelled):
        LLM.open(folder, on_progress=stop)
    seen: list[tuple[int, int]] = []
    LLM.open(folder, on_progress=lambda *at: seen.append(at)).close()
    assert seen[-1][0] == seen[-1][1] > 0


def test_what_is_not_a_model_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="manifest"):
        LLM.open(tmp_path)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("manifest.json", b"{}"),
        ("manifest.json", b"[1]"),
        ("manifest.json", b"\xff"),
        ("tokenizer.json", b"{}"),
        ("tokenizer_config.json", b"{}"),
        ("chat_template.jinja", b"\xff\xfe"),
    ],
)
def test_damaged_files_are_refused_and_the_engine_ends(
    name: str, data: bytes, tmp_path: Path
) -> None:
    folder = tiny.model_dir(tmp_path)
    (folder / name).write_bytes(data)
    threads = threading.active_count()
    with pytest.raises(FlashError, match=name):
        LLM.open(folder)
    assert threading.active_count() <= threads


def test_a_tokeniser_larger_than_the_model_is_refused(tmp_path: Path) -> None:
    folder = tiny.model_dir(tmp_path)
    larger = tiny.model_dir(tmp_path, vocab=352)
    data = json.loads((larger / "tokenizer.json").read_bytes())
    (folder / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(CorruptModel, match=r"tokeni[sz]er"):
        LLM.open(folder)
