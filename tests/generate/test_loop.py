"""Tests of the loop: stop texts across tokens, whole characters, why it ends."""

from __future__ import annotations

from collections.abc import Generator

import fake_decoder
import pytest
from fake_decoder import FakeDecoder
from hypothesis import given
from hypothesis import strategies as st

from flashllm.errors import Cancelled
from flashllm.generate.events import Reason, Token
from flashllm.generate.loop import StopGate, generate_ids, generate_text
from flashllm.generate.sampling import Sampler, SamplingParams

TOKENIZER = fake_decoder.tokenizer()


def nothing(done: int, total: int) -> None:
    """A watcher that does not care."""


def drain(steps: Generator[object, None, Reason]) -> tuple[list[object], Reason]:
    """What a generator yields, and what it returns."""
    out = []
    while True:
        try:
            out.append(next(steps))
        except StopIteration as end:
            return out, end.value


def replay(ids: list[int], reason: Reason = "length") -> Generator[int, None, Reason]:
    yield from ids
    return reason


def as_text(ids: list[int], stops: tuple[str, ...] = ()) -> tuple[str, Reason, list[str]]:
    seen: list[int] = []
    pieces, reason = drain(generate_text(replay(ids), TOKENIZER.stream(), stops, seen.append))
    assert seen == ids[: len(seen)]
    texts = [piece.text for piece in pieces if isinstance(piece, Token)]
    assert "" not in texts
    return "".join(texts), reason, texts


@given(
    st.text("abc", max_size=30),
    st.lists(st.text("abc", min_size=1, max_size=5), max_size=3),
    st.lists(st.integers(0, 30), max_size=6),
)
def test_what_passes_a_stop_gate_does_not_depend_on_the_pieces(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    def passed(edges: list[int]) -> tuple[str, bool]:
        gate = StopGate(stops)
        pieces = [text[a:b] for a, b in zip([0, *edges], [*edges, len(text)], strict=True)]
        out = "".join(gate.push(piece) for piece in pieces)
        return out + gate.finish(), gate.stopped

    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    out, stopped = passed(sorted(min(cut, len(text)) for cut in cuts))
    assert stopped == bool(ends)
    assert (out, stopped) == passed(list(range(len(text))))
    if not ends:
        assert out == text
    else:
        assert text.startswith(out)
        assert not any(stop in out for stop in stops)
        assert len(out) < min(ends)


def test_text_passes_as_soon_as_it_cannot_be_a_stop() -> None:
    gate = StopGate(["<end>"])
    assert [gate.push(c) for c in "a<enx<end>b"] == ["a", "", "", "", "<enx", *[""] * 6]
    assert gate.stopped


def test_a_stop_text_across_tokens_ends_the_reply() -> None:
    ids = [TOKENIZER.encode(c)[0] for c in "one STOP two"]
    assert as_text(ids, ("STOP",))[:2] == ("one ", "stop")
    assert as_text(ids, ("STOP!",))[:2] == ("one STOP two", "length")


def test_held_text_comes_out_at_the_end() -> None:
    ids = [TOKENIZER.encode(c)[0] for c in "so ST"]
    assert as_text(ids, ("STOP",))[:2] == ("so ST", "length")


@given(st.text(max_size=20))
def test_characters_are_never_split(text: str) -> None:
    clean = text.encode("utf-8", "replace").decode()
    ids = [TOKENIZER.encode(character) for character in clean]
    out, _, pieces = as_text([token for part in ids for token in part])
    assert out == clean
    assert all("�" not in piece or "�" in clean for piece in pieces)


def test_an_unfinished_character_ends_as_one_replacement() -> None:
    ids = TOKENIZER.encode("x😀")[:-1]
    assert as_text(ids)[0] == "x�"


def run(
    decoder: FakeDecoder, prompt: list[int], n_ctx: int = 64, max_tokens: int | None = None
) -> tuple[list[object], Reason, fake_decoder.FakeSequence]:
    sequence = decoder.new_sequence(n_ctx)
    sampler = Sampler(SamplingParams(temperature=0))
    ids, reason = drain(
        generate_ids(
            decoder,
            sequence,
            prompt,
            sampler,
            ends={2},
            max_tokens=max_tokens,
            on_prefill=nothing,
            on_layer=nothing,
        )
    )
    return ids, reason, sequence


def test_reasons() -> None:
    ids, reason, _ = run(FakeDecoder(ends=0.0), [5, 6], max_tokens=4)
    assert (len(ids), reason) == (4, "length")
    ids, reason, _ = run(FakeDecoder(ends=1.0), [5, 6])
    assert (ids, reason) == ([], "stop")
    ids, reason, sequence = run(FakeDecoder(ends=0.0), [5, 6], n_ctx=10)
    assert (len(ids), reason, sequence.length) == (9, "context", 10)


def test_the_last_token_is_not_computed_in_vain() -> None:
    ids, _, sequence = run(FakeDecoder(ends=0.0), [5, 6], max_tokens=3)
    assert sequence.tokens == [5, 6, *ids[:-1]]


@pytest.mark.parametrize("at", range(12))
def test_cancelling_leaves_a_valid_sequence(at: int) -> None:
    decoder = FakeDecoder(ends=0.0, chunk=2)
    whole, _, _ = run(decoder, [5, 6, 7, 8], max_tokens=9)
    decoder = FakeDecoder(ends=0.0, chunk=2)

    def stop(count: int) -> None:
        if count == at:
            raise Cancelled("enough")

    decoder.before_layer = stop
    ids, reason, sequence = run(decoder, [5, 6, 7, 8], max_tokens=9)
    assert reason == "cancelled"
    assert ids == whole[: len(ids)]
    assert sequence.tokens == [5, 6, 7, 8, *ids][: sequence.length]
