"""The rotary positions of a checkpoint, as either source states them."""

from __future__ import annotations

import dataclasses
from typing import Any

from flashllm.errors import CorruptModel, UnsupportedModel
from flashllm.model.families import rope_scaling
from flashllm.model.families.keys import GGUFKeys, HFKeys
from flashllm.model.specs import MAX_CONTEXT, RopeSpec, RopeStyle


def hf_rope(
    keys: HFKeys,
    *,
    theta: float = 10000.0,
    theta_key: str = "rope_theta",
    partial: float = 1.0,
    layers: str = "full_attention",
) -> RopeSpec:
    """The rotary positions of config.json, for the layers of one of its layer_types.

    Read from "rope_parameters" (transformers 5, where they may differ by type of layer) or from
    theta_key and "rope_scaling" (before, when scaling was for full attention). theta and partial,
    the share of a head that turns, hold where nothing is said
    (github.com/huggingface/transformers, modeling_rope_utils.py).
    Raises CorruptModel, UnsupportedModel.
    """
    given = _parameters(keys, layers)
    theta = given.positive("rope_theta", keys.positive(theta_key, theta))
    partial = keys.positive("partial_rotary_factor", partial)
    share = given.positive("partial_rotary_factor", partial)
    if share > 1:
        raise given.wrong("partial_rotary_factor", share, "a number up to 1")
    plain = RopeSpec(theta, int(keys.head_dim * share), "half")
    kind = _kind(given)
    # Dynamic NTK scaling changes nothing up to the context that the model was made for.
    if kind in ("default", "dynamic"):
        return plain
    try:
        return dataclasses.replace(plain, **_hf_scaling(keys, given, kind, plain))
    except (ArithmeticError, ValueError):
        raise CorruptModel(
            f"{keys.what}: the RoPE scaling {kind!r} has impossible parameters"
        ) from None


def hf_context(keys: HFKeys, default: int | None = None) -> int:
    """Tokens the model was made for; YaRN states what it was before scaling, or after."""
    context = keys.integer("max_position_embeddings", default)
    given = _parameters(keys, "full_attention")
    if _kind(given) != "yarn" or given.get("original_max_position_embeddings") is None:
        return context
    original = given.integer("original_max_position_embeddings", most=MAX_CONTEXT)
    return max(context, _scaled(original, given.positive("factor", context / original)))


def gguf_rope(keys: GGUFKeys, style: RopeStyle, *, theta: float | None = None) -> RopeSpec:
    """The rotary positions of a GGUF file.

    theta: that of sliding layers, to which no scaling applies; None: those of the other layers.
    Factors by pair come as tensors, which LongRoPE has two of (github.com/ggml-org/llama.cpp,
    llama-model.cpp, llama-context.cpp and ggml-cpu/ops.cpp). Raises CorruptModel, UnsupportedModel.
    """
    dims = keys.integer("rope.dimension_count", keys.head_dim)
    if theta is not None:
        return RopeSpec(theta, dims, style)
    plain = RopeSpec(keys.positive("rope.freq_base", 10000.0), dims, style)
    kind = keys.text("rope.scaling.type", "linear")
    if kind not in ("none", "linear", "yarn", "longrope"):
        raise UnsupportedModel(f"RoPE scaling {kind!r:.80} is not supported")
    factor = keys.number("rope.scaling.factor", keys.number("rope.scale_linear", 1.0)) or 1.0
    magnitude = keys.positive("rope.scaling.attn_factor", 1.0)
    try:
        if kind == "yarn":
            stretched = rope_scaling.yarn(plain.theta, dims, factor, **_gguf_yarn(keys))
            magnitude *= keys.positive(
                "rope.scaling.yarn_attn_factor", rope_scaling.yarn_magnitude(factor)
            )
        else:
            stretched = (1.0 if kind == "none" else factor,) * (dims // 2)
    except (ArithmeticError, ValueError):
        raise CorruptModel(
            f"{keys.what}: the RoPE scaling {kind!r} has impossible parameters"
        ) from None
    return _with_factors(keys, dataclasses.replace(plain, magnitude=magnitude), stretched)


def gguf_context(keys: GGUFKeys) -> int:
    """Tokens the model was made for, as hf_context."""
    context = keys.integer("context_length")
    if keys.get("rope.scaling.type") != "yarn":
        return context
    return max(context, _scaled(_original(keys), keys.positive("rope.scaling.factor", 1.0)))


def _parameters(keys: HFKeys, layers: str) -> HFKeys:
    """The object that holds the parameters for layers of type `layers`; empty if there is none."""
    given = keys.inner("rope_scaling" if keys.get("rope_scaling") else "rope_parameters")
    by_type = given.has("full_attention") or given.has("sliding_attention")
    return given.inner(layers) if by_type or layers != "full_attention" else given


def _scaled(tokens: int, factor: float) -> int:
    return int(min(tokens * factor, MAX_CONTEXT))


def _kind(given: HFKeys) -> str:
    """The scaling's name; the first Phi-3s say "su" or "yarn" and mean LongRoPE."""
    kind = given.text("rope_type", given.text("type", "default"))
    return "longrope" if kind == "su" or (kind == "yarn" and given.has("long_factor")) else kind


def _hf_scaling(keys: HFKeys, given: HFKeys, kind: str, plain: RopeSpec) -> dict[str, Any]:
    """The fields of RopeSpec that the scaling `kind` sets."""
    theta, dims = plain.theta, plain.dims
    if kind == "linear":
        return {"divisors": (given.positive("factor"),) * (dims // 2)}
    context = keys.integer("max_position_embeddings")
    original = keys.integer(
        "original_max_position_embeddings",
        given.integer("original_max_position_embeddings", context),
    )
    if kind == "llama3":
        bounds = (given.positive("low_freq_factor"), given.positive("high_freq_factor"))
        factor = given.positive("factor")
        return {"divisors": rope_scaling.llama3(theta, dims, factor, *bounds, original)}
    factor = given.positive("factor", context / original)
    if kind == "longrope":
        magnitude = rope_scaling.longrope_magnitude(factor, original)
        return {
            "divisors": given.numbers("short_factor"),
            "long_after": original,
            "long_divisors": given.numbers("long_factor"),
            "magnitude": given.positive("attention_factor", magnitude),
        }
    if kind == "yarn":
        magnitude = rope_scaling.yarn_magnitude(
            factor, given.number("mscale", 0.0), given.number("mscale_all_dim", 0.0)
        )
        divisors = rope_scaling.yarn(
            theta,
            dims,
            factor,
            original,
            given.positive("beta_fast", 32.0),
            given.positive("beta_slow", 1.0),
            given.flag("truncate", True),
        )
        return {"divisors": divisors, "magnitude": given.positive("attention_factor", magnitude)}
    raise UnsupportedModel(f"RoPE scaling {kind!r:.80} is not supported")


def _original(keys: GGUFKeys) -> int:
    """Tokens the model was trained for before its positions were scaled."""
    return keys.integer("rope.scaling.original_context_length", keys.integer("context_length"))


def _gguf_yarn(keys: GGUFKeys) -> dict[str, Any]:
    return {
        "original": _original(keys),
        "beta_fast": keys.positive("rope.scaling.yarn_beta_fast", 32.0),
        "beta_slow": keys.positive("rope.scaling.yarn_beta_slow", 1.0),
        "strength": keys.number("rope.scaling.yarn_ext_factor", 1.0),
    }


def _with_factors(keys: GGUFKeys, rope: RopeSpec, stretched: tuple[float, ...]) -> RopeSpec:
    """`rope` with the divisors of its tensors, times those of its scaling."""

    def times(name: str) -> tuple[float, ...]:
        factors = keys.read_vector(name).tolist()
        if len(factors) != len(stretched):
            raise CorruptModel(f"tensor {name!r} has {len(factors)} factors, not {len(stretched)}")
        return tuple(a * b for a, b in zip(factors, stretched, strict=True))

    if "rope_freqs.weight" in keys.tensors:
        return dataclasses.replace(rope, divisors=times("rope_freqs.weight"))
    if "rope_factors_short.weight" in keys.tensors:
        return dataclasses.replace(
            rope,
            divisors=times("rope_factors_short.weight"),
            long_after=_original(keys),
            long_divisors=times("rope_factors_long.weight"),
        )
    same = all(divisor == 1 for divisor in stretched)
    return rope if same else dataclasses.replace(rope, divisors=stretched)
