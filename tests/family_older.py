"""config.json as transformers 4 wrote it, from that of transformers 5."""

from __future__ import annotations

import copy
from typing import Any


def older_config(config: dict[str, Any]) -> dict[str, Any]:
    """The same model with rope_theta and rope_scaling beside each other, not in rope_parameters."""
    older = copy.deepcopy(config)
    for place in [older, older.get("text_config", {})]:
        parameters = place.pop("rope_parameters", None)
        if parameters is not None:
            place |= _unpacked(parameters, place.get("model_type"))
        if place.get("model_type") in ("gemma2", "gemma3_text"):
            _without_layer_types(place)
    return older


def _unpacked(parameters: dict[str, Any], model_type: str | None) -> dict[str, Any]:
    """The keys that say what rope_parameters says."""
    if "full_attention" in parameters:
        local = parameters["sliding_attention"]["rope_theta"]
        found = _unpacked(parameters["full_attention"], model_type)
        if "rope_scaling" in found:
            found["rope_scaling"]["rope_type"] = found["rope_scaling"].pop("type")
        return found | ({"rope_local_base_freq": local} if model_type == "gemma3_text" else {})
    scaling = dict(parameters)
    theta, partial = scaling.pop("rope_theta"), scaling.pop("partial_rotary_factor", None)
    names = {"gpt_neox": ("rotary_emb_base", "rotary_pct")}
    theta_key, partial_key = names.get(model_type or "", ("rope_theta", "partial_rotary_factor"))
    found = {theta_key: theta}
    if partial is not None:
        found[partial_key] = partial
    if scaling["rope_type"] != "default":
        found["rope_scaling"] = {"type": scaling.pop("rope_type"), **scaling}
    return found


def _without_layer_types(place: dict[str, Any]) -> None:
    """Replace layer_types by the period they have."""
    listed = place.pop("layer_types")
    if "full_attention" in listed:
        place["sliding_window_pattern"] = listed.index("full_attention") + 1
