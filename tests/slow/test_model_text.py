"""Greedy text of the real model, through the Python API."""

from __future__ import annotations

from pathlib import Path

import pytest

import flashllm as fl

pytestmark = pytest.mark.slow

# From `tools/make_goldens.py greedy MODEL "The capital of France is"`, in float32. The first four
# tokens lead the next likeliest by more than 1.2 logits, the first twelve by more than 0.2.
PROMPT = "The capital of France is"
CONTINUATION = " Paris.\n\nThe answer is: 201"
CLEAR = " Paris.\n\n"


def test_the_reference_backend_continues_as_float32_does(model_path: Path) -> None:
    with fl.load(model_path, backend="reference") as llm:
        assert llm.complete(PROMPT, temperature=0.0, max_tokens=12).result() == CONTINUATION


@pytest.mark.parametrize("threads", [1, 2])
def test_the_fast_kernels_continue_alike_where_it_is_clear(model_path: Path, threads: int) -> None:
    with fl.load(model_path, threads=threads) as llm:
        assert llm.complete(PROMPT, temperature=0.0, max_tokens=4).result() == CLEAR


def test_a_chat_knows_the_capital_and_does_not_depend_on_threads(model_path: Path) -> None:
    # Float32 gives each of these tokens a lead of 0.7 logits or more. With other words of the
    # question ("What is ...?") this small model's first word is a near tie of "The" and "L".
    answers = []
    for threads in (1, 2, 3):
        with fl.load(model_path, threads=threads) as llm:
            chat = llm.session(temperature=0.0, max_tokens=40)
            first = chat.ask("Tell me the capital of France.")
            answers.append((first, chat.ask("And of Italy?")))
    assert answers[0][0] == "The capital of France is Paris."
    assert answers[1:] == answers[:1] * 2


def test_sampling_with_a_seed_repeats_itself(model_path: Path) -> None:
    with fl.load(model_path) as llm:
        replies = [
            llm.complete("Once upon a time", temperature=0.9, seed=7, max_tokens=40).result()
            for _ in range(2)
        ]
    assert replies[0] == replies[1]


def test_a_saved_conversation_goes_on_as_if_never_interrupted(
    model_path: Path, tmp_path: Path
) -> None:
    with fl.load(model_path) as llm:
        chat = llm.session(temperature=0.0, max_tokens=24)
        chat.ask("Name three colours.")
        chat.save(tmp_path / "talk.safetensors")
        expected = chat.ask("Which of them is the warmest?")
        again = llm.load_session(tmp_path / "talk.safetensors", temperature=0.0, max_tokens=24)
        assert again.ask("Which of them is the warmest?") == expected
