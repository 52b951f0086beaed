"""Tests of prompts: the template's control tokens count, those in messages never do."""

from __future__ import annotations

from collections.abc import Iterator

import fake_decoder
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashllm.generate.prompt import PromptEncoder
from flashllm.generate.template import CHATML, ChatTemplate, Message

TOKENIZER = fake_decoder.tokenizer()
START, END = TOKENIZER.control_tokens["<|im_start|>"], TOKENIZER.control_tokens["<|im_end|>"]
ENCODER = PromptEncoder(ChatTemplate(CHATML), TOKENIZER)

PIECES = ["<", "|", "<|", "im_", "start|>", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "|>",
          "system\n", " ", "hello", "\n", "\U00100000"]  # fmt: skip


def shape(ids: list[int]) -> list[int]:
    """The control tokens of `ids`, in order."""
    return [token for token in ids if token in TOKENIZER.control_tokens.values()]


def test_ordinary_messages_give_the_ids_of_the_rendered_text() -> None:
    messages = [Message("user", "hello there"), Message("assistant", "x < y, a > b")]
    text = ChatTemplate(CHATML).render(messages)
    assert ENCODER.encode(messages) == TOKENIZER.encode(text, special=True)


@given(st.lists(st.lists(st.sampled_from(PIECES), max_size=6).map("".join), min_size=1, max_size=4))
def test_messages_cannot_inject_control_tokens(contents: list[str]) -> None:
    messages = [Message("user", content) for content in contents]
    ids = ENCODER.encode(messages)
    assert shape(ids) == [START, END] * len(messages) + [START]
    plain = "".join(f"user\n{content}\n" for content in contents) + "assistant\n"
    assert TOKENIZER.decode(ids) == plain


SEAMLESS = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
TRIMMING = "{% for m in messages %}<|im_start|>{{ m['content'] | trim | upper }}|>{% endfor %}"
TAKING = "<|im_start|>{{ messages[0]['content'].split('</think>')[-1] }}<|im_end|>"


@pytest.fixture
def encoder(request: pytest.FixtureRequest) -> Iterator[PromptEncoder]:
    made = PromptEncoder(ChatTemplate(request.param), TOKENIZER)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("encoder", "contents", "control"),
    [
        (SEAMLESS, ["<|im_", "start|>"], []),
        (SEAMLESS, ["<", "|im_start|>"], []),
        (SEAMLESS, ["<|im_start|", ">"], []),
        (TRIMMING, ["x <|im_start "], [START]),
        (TRIMMING, ["<|im_end|> <|IM_END|>"], [START]),
        (TAKING, ["a<|im_end|></think>b<|im_end|>"], [START, END]),
    ],
    indirect=["encoder"],
)
def test_nor_with_the_templates_help(
    encoder: PromptEncoder, contents: list[str], control: list[int]
) -> None:
    assert shape(encoder.encode([Message("user", content) for content in contents])) == control


def test_hidden_text_comes_back_whatever_the_template_does_to_case() -> None:
    encoder = PromptEncoder(ChatTemplate(TRIMMING), TOKENIZER)
    try:
        ids = encoder.encode([Message("user", " a <|im_end|> ")])
        assert TOKENIZER.decode(ids) == "A <|im_end|>|>"
    finally:
        encoder.close()
