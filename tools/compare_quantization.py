"""Hold flashllm's quantisers to llama.cpp's: the same weights, in as many bits, how far from them?

    python tools/compare_quantization.py --peer DIR --gguf FILE --golden FULL_GOLDEN
    python tools/compare_quantization.py --peer DIR --gguf FILE --noise

FILE is dequantised to float32 first: that is what every quantiser is given, and what the golden
(tools/make_goldens.py, every log-probability) was made of. Each result is scored with its weights
in float32 arithmetic, so that only the weights' own loss is seen: llama.cpp's files dequantised by
the public gguf package, flashllm's models by the reference backend. Prints a table; bits are those
of all tensors per weight, norms included. --noise puts random weights, normal and Laplace, in place
of the model's and prints the relative root-mean-square error of the ffn_down matrices.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from gguf.quants import dequantize

from flashllm.convert import convert
from flashllm.flash.format import read_model

PEERS = (
    ("Q4_0", True),
    ("Q4_0", False),
    ("Q4_1", True),
    ("Q4_K_M", True),
    ("Q4_K_M", False),
    ("Q5_0", False),
    ("Q8_0", False),
)
OURS = (("q4", True), ("q4", False), ("q4m", True), ("q4m", False), ("q8", False))
MADE_HERE = ("general.architecture", "general.file_type", "general.quantization_version")


def main() -> None:
    """Quantise, score, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", type=Path, required=True, help="where llama.cpp was built")
    parser.add_argument("--gguf", type=Path, required=True, help="the model")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--golden", type=Path, help="predictions to hold it to")
    what.add_argument("--noise", action="store_true", help="compare the error of random weights")
    parser.add_argument("--only", help="names that contain this, such as Q4_0")
    options = parser.parse_args()
    if options.noise:
        compare_errors(options)
    else:
        compare_predictions(options)


def compare_predictions(options: argparse.Namespace) -> None:
    """Print how far each quantisation's predictions are from the golden's."""
    print("| | bits per weight | mean KL | top-1 agreement | perplexity |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source = folder / "source.gguf"
        dequantise(options.gguf, source)
        for name, pure in PEERS:
            label = f"llama.cpp {name}{' --pure' if pure else ''}"
            if options.only is None or options.only in label:
                print(row(label, *peer(options, folder, source, name, pure)), flush=True)
        for name, pure in OURS:
            label = f"flashllm {name}{' --pure' if pure else ''}"
            if options.only is None or options.only in label:
                print(row(label, *own(options, folder, source, name, pure)), flush=True)


def peer(
    options: argparse.Namespace, folder: Path, source: Path, name: str, pure: bool
) -> tuple[float, dict[str, Any]]:
    """Bits per weight and scores of llama.cpp's quantisation."""
    made = folder / "peer.gguf"
    quantise(options, source, made, name, pure)
    tensors = gguf.GGUFReader(made).tensors
    bits = 8 * sum(int(t.n_bytes) for t in tensors) / sum(int(t.n_elements) for t in tensors)
    exact = folder / "exact.gguf"
    dequantise(made, exact)
    model = convert(exact, folder / "peer", dtype="f32", overwrite=True)
    return bits, score(options, model, "cpu")  # float32 weights: its arithmetic is float32 as well


def own(
    options: argparse.Namespace, folder: Path, source: Path, name: str, pure: bool
) -> tuple[float, dict[str, Any]]:
    """Bits per weight and scores of flashllm's quantisation."""
    model = convert(source, folder / "own", dtype=name, pure=pure, overwrite=True)
    weights = sum(int(t.n_elements) for t in gguf.GGUFReader(source).tensors)
    small = (model / "small.safetensors").stat().st_size
    bits = 8 * (read_model(model).unit_bytes + small) / weights
    return bits, score(options, model, "reference")


def compare_errors(options: argparse.Namespace) -> None:
    """Print what each quantisation loses of random weights."""
    print("| | bits per weight | normal | Laplace |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        rows: dict[str, list[str]] = {}
        for kind in ("normal", "laplace"):
            source = folder / f"{kind}.gguf"
            dequantise(options.gguf, source, np.random.default_rng(0), kind)
            exact = down_of(source)
            for name in ("Q4_0", "Q4_K_S", "Q4_1", "Q5_0"):
                quantise(options, source, folder / "peer.gguf", name, pure=True)
                made = down_of(folder / "peer.gguf")
                bits = 8 * made.nbytes / exact.size
                rows.setdefault(f"llama.cpp {name} | {bits:.2f}", []).append(
                    f"{relative_error(exact.weights, made.weights):.4f}"
                )
            for name, bits in (("q4", 4.5), ("q4m", 5.0)):
                model = convert(source, folder / "own", dtype=name, overwrite=True)
                loss = (read_model(model).manifest.loss or {})["ffn_down"]
                rows.setdefault(f"flashllm {name} | {bits:.2f}", []).append(f"{loss:.4f}")
    for label, errors in rows.items():
        print(f"| {label} | {' | '.join(errors)} |")


@dataclasses.dataclass(frozen=True)
class Down:
    """The ffn_down matrices of a file: their weights in float32, their number, their bytes."""

    weights: list[npt.NDArray[np.float32]]
    size: int
    nbytes: int


def down_of(path: Path) -> Down:
    """Those whose rows are whole blocks of every type: of SmolLM2, only ffn_down's are."""
    tensors = sorted(gguf.GGUFReader(path).tensors, key=lambda t: t.name)  # llama.cpp sorts too
    found = [t for t in tensors if "ffn_down" in t.name]
    weights = [np.array(dequantize(t.data, t.tensor_type)) for t in found]
    return Down(weights, sum(w.size for w in weights), sum(int(t.n_bytes) for t in found))


def relative_error(
    before: list[npt.NDArray[np.float32]], after: list[npt.NDArray[np.float32]]
) -> float:
    """sqrt(sum of squared errors / sum of squares)."""
    error = sum(float(((a - b) ** 2).sum()) for a, b in zip(before, after, strict=True))
    return float(np.sqrt(error / sum(float((a**2).sum()) for a in before)))


def quantise(
    options: argparse.Namespace, source: Path, target: Path, name: str, pure: bool
) -> None:
    """Have llama.cpp quantise a GGUF file."""
    flags = ["--pure"] if pure else []
    command = [options.peer / "bin" / "llama-quantize", *flags, source, target, name]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def score(options: argparse.Namespace, model: Path, backend: str) -> dict[str, Any]:
    """What `flashllm eval` finds."""
    command = [sys.executable, "-m", "flashllm", "eval", "-m", str(model), "--json"]
    command += ["--against", str(options.golden), "--backend", backend]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=-1).stdout)
    return found


def row(label: str, bits: float, found: dict[str, Any]) -> str:
    """A line of the table."""
    top1 = 100 * found["top1_agreement"]
    kl, perplexity = found["mean_kl"], found["perplexity"]
    return f"| {label} | {bits:.2f} | {kl:.4f} | {top1:.1f} % | {perplexity:.3f} |"


def dequantise(
    source: Path, target: Path, rng: np.random.Generator | None = None, law: str = "normal"
) -> None:
    """A GGUF file with all its tensors in float32, by the public package; or of random matrices."""
    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, architecture)
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key not in MADE_HERE:
            kind = field.types[0]
            inner = field.types[1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), kind, inner)
    writer.add_file_type(0)
    for tensor in reader.tensors:
        shape = [int(n) for n in reversed(tensor.shape)]
        weights = dequantize(tensor.data, tensor.tensor_type).reshape(shape)
        if rng and len(shape) > 1:
            weights = getattr(rng, law)(size=shape) / np.sqrt(shape[-1])
        writer.add_tensor(tensor.name, weights.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
