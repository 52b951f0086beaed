"""verify finds every flipped bit, wherever it is, and says which unit or file."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny

from flashllm.convert import verify
from flashllm.errors import CorruptModel, FlashError, ModelNotFound
from flashllm.flash.format import read_model

UNITS = "units-00001.safetensors"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.model_dir(tmp_path_factory.mktemp("verify"), "q8", ffn=4096)


@pytest.fixture
def model(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "model"))


def flip(path: Path, place: int, mask: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ mask]))


def test_a_sound_model(model: Path) -> None:
    report = verify(model)
    opened = read_model(model)
    assert report.units == sum(group.units for group in opened.groups.values())
    listed = sum(entry.nbytes for entry in opened.manifest.files.values())
    assert report.bytes == listed


def test_every_unit_is_checked(model: Path) -> None:
    for name, group in read_model(model).groups.items():
        for unit in range(group.units):
            place = group.file_offset + int(group.offsets[unit]) + int(group.lengths[unit]) - 1
            flip(model / UNITS, place, 1)
            with pytest.raises(CorruptModel, match=f"{UNITS}: unit {unit} of '{name}' damaged"):
                verify(model)
            flip(model / UNITS, place, 1)
    verify(model)


def test_several_damaged_units_are_counted(model: Path) -> None:
    group = read_model(model).group("layers.1.ffn")
    for unit in (0, 2, 3):
        flip(model / UNITS, group.file_offset + int(group.offsets[unit]), 128)
    with pytest.raises(CorruptModel, match=r"unit 0 of 'layers\.1\.ffn' and 2 more damaged"):
        verify(model)


def test_any_bit_of_any_file(model: Path) -> None:
    rng = np.random.default_rng(11)
    files = sorted(model.iterdir())
    for i in range(200):
        path = files[i % len(files)]
        place, mask = int(rng.integers(path.stat().st_size)), 1 << int(rng.integers(8))
        flip(path, place, mask)
        with pytest.raises(FlashError) as caught:
            verify(model)
        assert path.name in str(caught.value)
        flip(path, place, mask)
    verify(model)


def test_padding_is_covered_too(model: Path) -> None:
    group = read_model(model).group("layers.0.attn")
    end = group.file_offset + int(group.offsets[1])
    assert int(group.lengths[0]) % 4096
    flip(model / UNITS, end - 1, 1)
    with pytest.raises(CorruptModel, match="padding"):
        verify(model)


def test_missing_model(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        verify(tmp_path / "absent")
