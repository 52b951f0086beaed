"""A model without weights: its logits follow from a hash of the tokens so far, so a slip shows."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import tiny
import xxhash

from flashllm.cache.units import Traffic
from flashllm.errors import CorruptModel, OutOfBudget
from flashllm.generate.prompt import PromptEncoder
from flashllm.generate.session import ChatModel
from flashllm.generate.template import CHATML, ChatTemplate
from flashllm.generate.tokenizer import Tokenizer, files_from_gguf
from flashllm.model.config import ModelConfig
from flashllm.model.memory import FIXED_BYTES
from flashllm.model.specs import AttentionSpec, FFNSpec, LayerKind, NormSpec, RopeSpec

VOCAB = 320
LAYERS = 3


class FakeSequence:
    """A KV cache that holds the tokens themselves."""

    def __init__(self, n_ctx: int) -> None:
        self.n_ctx = n_ctx
        self.tokens: list[int] = []
        self.closed = False

    @property
    def length(self) -> int:
        return len(self.tokens)

    @property
    def nbytes(self) -> int:
        return 2 * self.n_ctx

    def truncate(self, length: int) -> None:
        assert 0 <= length <= self.length
        del self.tokens[length:]

    def export(self) -> dict[str, np.ndarray]:
        return {"keys": np.array(self.tokens, dtype=np.float16)}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        keys = state.get("keys")
        if keys is None or len(state) > 1 or len(keys.shape) != 1 or keys.dtype != np.float16:
            raise CorruptModel("the session's cache has the wrong shape")
        self.tokens = [int(value) for value in keys]

    def close(self) -> None:
        self.closed = True


class FakeDecoder:
    """Deterministic logits. before_layer(count) is called before each layer, for tests to hook."""

    kv_dtype: Literal["f16", "f32"] = "f16"

    def __init__(self, context: int = 512, chunk: int = 8, ends: float = 0.02) -> None:
        self.config = ModelConfig(
            family="llama", hidden_size=64, vocab_size=VOCAB, context_length=context,
            norm=NormSpec("rms", 1e-5), attention=AttentionSpec(4, 2, 16, 0.25),
            ffn=FFNSpec(96, "silu"), kinds=(LayerKind(RopeSpec(1e4, 16, "interleaved")),),
            layers=(0,) * LAYERS, tied_head=True,
        )  # fmt: skip
        self.weight_bytes = self.resident_bytes = 1000
        self.scratch_bytes = self.streamed_bytes = 0
        self.budget: int | None = None
        self.traffic = Traffic()
        self.sparse_counts = None
        self.fallback: str | None = None
        self.chunk = chunk
        self.ends = ends
        self.closed = False
        self.layers_run = 0
        self.sequences: list[FakeSequence] = []
        self.poison: float | None = None
        self.before_layer: Callable[[int], None] = lambda count: None

    def new_sequence(self, n_ctx: int) -> FakeSequence:
        self.sequences.append(FakeSequence(n_ctx))
        return self.sequences[-1]

    def step(
        self,
        sequence: FakeSequence,
        tokens: Any,
        *,
        logits: Literal["last", "all", "none"],
        on_layer: Callable[[int, int], None] | None = None,
    ) -> np.ndarray:
        assert not self.closed and not sequence.closed
        ids = [int(token) for token in tokens]
        assert ids and sequence.length + len(ids) <= sequence.n_ctx
        rows, done, total = [], 0, len(ids) * LAYERS
        for start in range(0, len(ids), self.chunk):
            piece = ids[start : start + self.chunk]
            for _ in range(LAYERS):
                self.before_layer(self.layers_run)
                self.layers_run += 1
                done += len(piece)
                if on_layer is not None:
                    on_layer(done, total)
            for token in piece:
                sequence.tokens.append(token)
                rows.append(sequence.tokens[:])
        wanted = {"last": rows[-1:], "all": rows, "none": []}[logits]
        return np.stack([self.logits(history) for history in wanted])

    def logits(self, history: list[int]) -> np.ndarray:
        """Logits after `history`: noise over ordinary text, and now and then the end."""
        seed = xxhash.xxh3_64_intdigest(np.array(history, dtype=np.int32).tobytes())
        rng = np.random.Generator(np.random.PCG64(seed))
        out = rng.standard_normal(VOCAB).astype(np.float32)
        out[259:] += np.float32(1.0)
        out[[0, 1]] = -20.0
        out[2] = 20.0 if rng.random() < self.ends else -20.0
        if self.poison is not None:
            out[7] = self.poison
        return out

    def fit(
        self,
        budget: int | None,
        *,
        kv: int,
        taken: int,
        on_progress: Callable[[int, int], None],
    ) -> None:
        """As the real one, for weights that cannot be streamed."""
        if budget is not None and budget < self.least_budget(kv=kv, taken=taken):
            raise OutOfBudget("the KV cache does not fit: the budget is too small")
        self.budget = budget

    def least_budget(self, *, kv: int, taken: int) -> int:
        return FIXED_BYTES + self.resident_bytes + kv + taken

    def keep_rows(self, rows: int) -> None:
        self.kept_rows = rows

    def close(self) -> None:
        self.closed = True


@functools.cache
def tokenizer() -> Tokenizer:
    """The tokeniser of tests/tiny.py's models."""
    files = files_from_gguf(tiny.tokenizer_metadata(VOCAB))
    return Tokenizer.from_files(files)


def chat_model(decoder: FakeDecoder | None = None, template: str | None = CHATML) -> ChatModel:
    """A fake model that can chat."""
    words = tokenizer()
    prompts = PromptEncoder(ChatTemplate(template), words) if template else None
    return ChatModel(decoder or FakeDecoder(), words, prompts, identity="fake")
