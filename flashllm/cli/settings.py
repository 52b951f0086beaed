"""The settings a conversation answers with: by their flag's name, checked when they are changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from flashllm.cli.options import SamplingOptions
from flashllm.errors import InvalidInput

# flag -> (the library's name, how to read it, least value, greatest value)
_KNOWN: dict[str, tuple[str, Callable[[str], float], float, float]] = {
    "temp": ("temperature", float, 0, 100),
    "top-k": ("top_k", int, 0, 1 << 22),
    "top-p": ("top_p", float, 0, 1),
    "min-p": ("min_p", float, 0, 1),
    "repeat-penalty": ("repeat_penalty", float, 1e-3, 100),
    "seed": ("seed", int, -1, (1 << 63) - 1),
    "n": ("max_tokens", int, -1, 1 << 24),
}


class Settings:
    """What was asked for, on top of what the model's manifest recommends."""

    def __init__(self, options: SamplingOptions, recommended: Mapping[str, float]):
        self._values: dict[str, float] = {**recommended, **options.given()}
        if options.n_predict >= 0:
            self._values["max_tokens"] = options.n_predict

    def sampling(self, attempt: int = 0) -> dict[str, Any]:
        """Arguments for the library's `stream`; a later attempt moves a fixed seed on."""
        values: dict[str, Any] = dict(self._values)
        if attempt and "seed" in values:
            values["seed"] += attempt
        return values

    def change(self, text: str) -> None:
        """Do what "/set NAME VALUE" asks. Raises InvalidInput, saying what is accepted."""
        name, _, value = text.replace("=", " ").partition(" ")
        name = name.strip().lstrip("-").replace("_", "-").lower()
        name = {"temperature": "temp", "n-predict": "n"}.get(name, name)
        if name not in _KNOWN:
            raise InvalidInput(f"there is no setting {name!r}; there are {', '.join(_KNOWN)}")
        key, read, least, greatest = _KNOWN[name]
        try:
            number = read(value.strip())
        except ValueError:
            number = float("nan")
        if not least <= number <= greatest:
            kind = "a whole number" if read is int else "a number"
            raise InvalidInput(f"{name} takes {kind} from {least:g} to {greatest:g}, not {value!r}")
        if name in ("seed", "n") and number == -1:
            self._values.pop(key, None)
        else:
            self._values[key] = number

    def describe(self) -> str:
        """The settings in force, one a line."""
        lines = []
        for flag, (key, *_) in _KNOWN.items():
            value = self._values.get(key)
            lines.append(f"{flag:<14}  {'default' if value is None else f'{value:g}'}")
        return "\n".join(lines)
