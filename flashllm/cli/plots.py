"""Speed against budget, drawn: as bars of characters, and as a picture."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from flashllm.cli.figures import speed
from flashllm.errors import InvalidInput, ModelIOError

_EIGHTHS = " ▏▎▍▌▋▊▉"
_BOUND = "┃"
_HALF = 0.3  # of a bar's width, where 1 is from one bar to the next


@dataclasses.dataclass(frozen=True)
class Bar:
    """A speed that was measured, and the most it could have been, in tokens per second."""

    label: str
    tok_s: float
    bound: float


def bars(given: Sequence[Bar], width: int | None = None) -> list[str]:
    """A line for each bar, of at most `width` characters, by default the terminal's."""
    width = width or shutil.get_terminal_size().columns
    told = [speed(bar.tok_s) for bar in given]
    label = max(len(bar.label) for bar in given)
    number = max(map(len, told))
    room = max(8, width - label - number - 2)
    most = max(max(bar.tok_s, bar.bound) for bar in given)
    lines = [f"tok/s by budget; {_BOUND} what disk and cores allow"[:width]]
    for bar, text in zip(given, told, strict=True):
        at = min(room - 1, round(bar.bound / most * (room - 1)))
        cells = list(_bar(bar.tok_s / most * (room - 1)).ljust(room))
        cells[at] = _BOUND
        lines.append(f"{bar.label:>{label}} {''.join(cells)} {text:>{number}}")
    return lines


def _bar(length: float) -> str:
    """A bar of so many characters, to an eighth."""
    whole = int(length)
    return "█" * whole + _EIGHTHS[int(8 * (length - whole))].strip()


def png_writer(path: Path) -> Callable[[str, Sequence[Bar]], None]:
    """What draws bars under a title to the file `path`, and raises ModelIOError if it cannot.

    Raises InvalidInput if the docs extra is not installed, or the file's folder is not there.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InvalidInput(
            "--plot needs matplotlib, of the docs extra: pip install 'flashllm[docs]'"
        ) from None
    if path.suffix.lower() != ".png" or not path.absolute().parent.is_dir():
        raise InvalidInput(f"--plot {path}: name a .png file in a folder that exists")

    def draw(title: str, given: Sequence[Bar]) -> None:
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.add_subplot()
        places = range(len(given))
        axes.bar(places, [bar.tok_s for bar in given], 2 * _HALF, label="measured")
        axes.hlines(
            [bar.bound for bar in given],
            [place - _HALF for place in places],
            [place + _HALF for place in places],
            color="black",
            label="what disk and cores allow",
        )
        axes.set_xticks(places, [bar.label for bar in given])
        axes.set_xlabel("memory budget")
        axes.set_ylabel("tokens per second")
        axes.set_title(title)
        axes.legend()
        try:
            figure.savefig(path, format="png", dpi=150)
        except OSError as error:
            raise ModelIOError(f"{path}: {error.strerror}", path) from error

    return draw
