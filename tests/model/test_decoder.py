"""The decoder: the same token however it is computed, and the right one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import tiny

from flashllm.errors import Cancelled, ContextFull, InvalidInput
from flashllm.flash.reader import IO_MODES
from flashllm.model.loader import load_decoder
from flashllm.model.options import LoadOptions

DATA = Path(__file__).parent.parent / "data"
TOKENS = np.random.default_rng(7).integers(0, 320, 40)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Tiny models by (dtype, codec), made when asked for."""
    made = {}

    def path(dtype="q4", codec="tile"):
        if (dtype, codec) not in made:
            folder = tmp_path_factory.mktemp("model")
            made[dtype, codec] = tiny.model_dir(folder, dtype=dtype, codec=codec)
        return made[dtype, codec]

    return path


def all_logits(path, cuts, tokens=TOKENS, step_tokens=512, **options):
    """Logits of every token, the prompt cut into steps of the given lengths."""
    decoder = load_decoder(path, LoadOptions(**options), step_tokens=step_tokens)
    sequence = decoder.new_sequence(64)
    start, kept = 0, []
    for count in cuts:
        kept.append(decoder.step(sequence, tokens[start : start + count], logits="all"))
        start += count
    decoder.close()
    assert start == len(tokens) == sequence.length
    return np.concatenate(kept)


@pytest.mark.parametrize("codec", ["tile", "row"])
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "q8", "q4"])
def test_bitwise_whatever_the_chunks_and_threads(paths, dtype, codec):
    path = paths(dtype, codec)
    expected = all_logits(path, [1] * 40, threads=1)
    assert np.isfinite(expected).all()
    for threads in (1, 2, 3):
        for cuts in ([40], [3, 17, 20], [39, 1]):
            assert np.array_equal(all_logits(path, cuts, threads=threads), expected)
    narrow = all_logits(path, [40], threads=2, step_tokens=7)
    assert np.array_equal(narrow, expected)


def test_bitwise_with_keys_and_values_in_8_bits(paths):
    expected = all_logits(paths(), [1] * 40, threads=1, kv_dtype="q8")
    for threads in (1, 2, 3):
        for cuts in ([40], [3, 17, 20], [39, 1]):
            got = all_logits(paths(), cuts, threads=threads, kv_dtype="q8")
            assert np.array_equal(got, expected)


@pytest.mark.parametrize("codec", ["tile", "row"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [("f32", 1e-3), ("f16", 1e-3), ("bf16", 1e-3), ("q8", 0.05), ("q4", 0.05)],
)
def test_near_the_reference_backend(paths, dtype, codec, tolerance):
    """Keys and values in f16 and, for quantised weights, activations in int8 are the difference."""
    path = paths(dtype, codec)
    ours = all_logits(path, [40], threads=2)
    reference = all_logits(path, [40], backend="reference")
    assert np.abs(ours - reference).max() / np.abs(reference).max() < tolerance


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({"backend": "reference"}, 1e-5),
        ({"backend": "cpu", "kv_dtype": "f32"}, 1e-5),
        ({"backend": "cpu", "kv_dtype": "f16"}, 1e-3),
        ({"backend": "cpu", "kv_dtype": "q8"}, 2e-2),
        ({"backend": "reference", "kv_dtype": "q8"}, 2e-2),
    ],
)
def test_golden_logits_of_float32_arithmetic(tmp_path, options, tolerance):
    """Made by tools/make_goldens.py with torch from the same seeded file. Halves for keys and
    values cost 6e-4 in a model this narrow, where heads of 16 numbers average nothing out, and
    8 bits up to 2e-2."""
    golden = safetensors.numpy.load_file(DATA / "tiny_llama_golden.safetensors")
    path = tiny.model_dir(tmp_path, dtype="keep")
    tokens, logits = golden["tokens"], golden["logits"]
    ours = all_logits(path, [len(tokens)], tokens=tokens, **options)
    assert np.abs(ours - logits).max() / np.abs(logits).max() < tolerance


def test_every_way_of_reading_gives_the_same_logits(paths):
    expected = all_logits(paths(), [len(TOKENS)], threads=2)
    for io in IO_MODES:
        assert np.array_equal(all_logits(paths(), [len(TOKENS)], threads=2, io=io), expected)
    with pytest.raises(InvalidInput, match="uring"):
        load_decoder(paths(), LoadOptions(io="uring"))


def test_several_sequences_in_one_step(paths):
    """Rows of different sequences at different positions: each as if it were alone."""
    decoder = load_decoder(paths(), LoadOptions(threads=2))
    alone = [decoder.new_sequence(32) for _ in range(3)]
    together = [decoder.new_sequence(32) for _ in range(3)]
    prompts = [TOKENS[:3], TOKENS[5:6], TOKENS[10:17]]
    expected = [decoder.step(s, p, logits="all") for s, p in zip(alone, prompts, strict=True)]
    owners = [together[i] for i, p in enumerate(prompts) for _ in p]
    positions = np.concatenate([np.arange(len(p)) for p in prompts])
    got = decoder.forward(np.concatenate(prompts), owners, positions)
    assert np.array_equal(got, np.concatenate(expected))
    assert [s.length for s in together] == [3, 1, 7]

    following = decoder.forward([1, 2, 3], together, [3, 1, 7])
    for i, sequence in enumerate(alone):
        assert np.array_equal(following[i : i + 1], decoder.step(sequence, [i + 1]))
    with pytest.raises(InvalidInput, match="does not continue"):
        decoder.forward([1], together[:1], [9])
    decoder.close()


@pytest.mark.parametrize("kv_dtype", ["f16", "q8"])
def test_rolling_back_forgets(paths, kv_dtype):
    decoder = load_decoder(paths(), LoadOptions(threads=2, kv_dtype=kv_dtype))
    first, second = decoder.new_sequence(40), decoder.new_sequence(40)
    decoder.step(first, TOKENS[:20])
    first.truncate(9)
    decoder.step(second, TOKENS[:9])
    expected = decoder.step(second, TOKENS[30:34], logits="all")
    assert np.array_equal(decoder.step(first, TOKENS[30:34], logits="all"), expected)
    with pytest.raises(InvalidInput, match="cannot keep"):
        first.truncate(14)
    decoder.close()


@pytest.mark.parametrize("kv_dtype", ["f16", "q8"])
def test_saved_sequences_continue(paths, kv_dtype):
    decoder = load_decoder(paths(), LoadOptions(threads=1, kv_dtype=kv_dtype))
    first, second = decoder.new_sequence(40), decoder.new_sequence(33)
    decoder.step(first, TOKENS[:21])
    second.restore(first.export())
    assert np.array_equal(decoder.step(second, [5]), decoder.step(first, [5]))
    decoder.close()


def test_stopping_between_layers_keeps_whole_chunks(paths):
    decoder = load_decoder(paths(), LoadOptions(threads=2), step_tokens=8)
    layers = decoder.config.n_layers
    for stop_at in range(1, 20 * layers):
        sequence = decoder.new_sequence(40)
        seen = []

        def on_layer(done, total, seen=seen, stop_at=stop_at):
            seen.append((done, total))
            if done >= stop_at:
                raise Cancelled("stopped")

        with pytest.raises(Cancelled):
            decoder.step(sequence, TOKENS[:20], on_layer=on_layer)
        assert seen[-1][1] == 20 * layers
        assert sequence.length in (0, 8, 16)
        decoder.step(sequence, TOKENS[sequence.length : 20])
        fresh = decoder.new_sequence(40)
        decoder.step(fresh, TOKENS[:20])
        assert np.array_equal(decoder.step(sequence, [1]), decoder.step(fresh, [1]))
    decoder.close()


def test_bad_tokens_and_full_contexts_are_refused(paths):
    decoder = load_decoder(paths(), LoadOptions(threads=1))
    sequence = decoder.new_sequence(10)
    for tokens in ([], [-1], [320], [2**40]):
        with pytest.raises(InvalidInput):
            decoder.step(sequence, tokens)
    with pytest.raises(ContextFull, match="11 tokens"):
        decoder.step(sequence, TOKENS[:11])
    with pytest.raises(InvalidInput, match="trained for"):
        decoder.new_sequence(decoder.config.context_length + 1)
    assert decoder.step(sequence, TOKENS[:10], logits="none").shape == (0, 320)
    assert sequence.length == 10
    decoder.close()
