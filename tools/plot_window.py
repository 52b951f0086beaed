"""Draw how many neurons are new for a token, by how many tokens' neurons stay in memory.

    python tools/plot_window.py docs/window.svg "OPT-6.7B's shape, planted=DIR" "trained, 14 M=DIR"

From the curves that calibrate (or make_sparse.py) stored with the models. Needs matplotlib.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from flashllm.flash.format import read_manifest


def main() -> None:
    """Draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", type=Path, help="an SVG or PNG file")
    parser.add_argument("models", nargs="+", metavar="LABEL=MODEL")
    options = parser.parse_args()
    # The same curves give the same file.
    with rc_context({"svg.hashsalt": "flashllm", "svg.fonttype": "none"}):
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.add_subplot()
        for text in options.models:
            label, _, folder = text.partition("=")
            curves = read_manifest(Path(folder)).sparsity
            if curves is None:
                parser.error(f"{folder}: was not calibrated")
            (line,) = axes.plot([100 * share for share in curves["window"]], label=f"{label}: new")
            resident = [100 * share for share in curves["resident"]]
            axes.plot(resident, "--", color=line.get_color(), label=f"{label}: in memory")
        axes.set_xlabel("tokens before, whose neurons stay")
        axes.set_ylabel("% of the neurons")
        axes.set_xlim(0)
        axes.set_ylim(0)
        axes.grid(alpha=0.3)
        axes.legend()
        figure.savefig(options.target, metadata={"Date": None})


if __name__ == "__main__":
    main()
