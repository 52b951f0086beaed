"""What a calibration has done so far: a hidden folder beside its target, gone on with later."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from flashllm.convert.activity import ActivityFile, Shape
from flashllm.documents import field, parse_object
from flashllm.errors import CorruptModel, DiskFull, InvalidInput
from flashllm.flash.lock import locked
from flashllm.flash.output import write_error
from flashllm.sizes import format_size

STATE_FILE, ACTIVITY_FILE = "state.json", "activity.safetensors"
MAX_STATE = 1 << 16

Arrays = dict[str, NDArray[Any]]


def scratch_folder(target: Path) -> Path:
    """Where the calibration that makes `target` keeps what it has done."""
    return target.with_name(f".{target.name}.calibration")


@contextlib.contextmanager
def opened(target: Path, *, restart: bool) -> Iterator[Scratch]:
    """The scratch folder of `target`, for this process alone; what it held is dropped on restart.

    Raises InvalidInput if another process uses it, DiskFull, ModelIOError.
    """

    def busy() -> None:
        raise InvalidInput(
            f"{target}: another process is calibrating it now; wait for that, or choose another "
            "place"
        )

    folder = scratch_folder(target)
    lock = target.with_name(f".{target.name}.calibration.lock")
    with locked(lock, on_wait=busy, remove=True):
        scratch = Scratch(folder)
        if restart:
            scratch.remove()
        with scratch.translated():
            folder.mkdir(exist_ok=True)
        yield scratch


class Scratch:
    """The folder, whose owner alone may use it."""

    def __init__(self, folder: Path):
        self.folder = folder

    def check_room(self, activity: Shape, model_bytes: int) -> None:
        """Raises DiskFull unless the disk has room for the activity and for the model."""
        with self.translated():
            files = [file.stat() for file in self.folder.iterdir()]
            free = shutil.disk_usage(self.folder).free
        taken = sum(512 * int(getattr(stat, "st_blocks", stat.st_size // 512)) for stat in files)
        needed = activity.nbytes + model_bytes - taken
        if free < needed:
            raise DiskFull(
                f"{self.folder.parent}: needs {format_size(needed)}, of which "
                f"{format_size(activity.nbytes)} for a while, and the disk has "
                f"{format_size(free)} free; make room, or take fewer --tokens",
                self.folder,
            )

    def activity(self, shape: Shape) -> ActivityFile:
        """The file of activity. Raises DiskFull, ModelIOError."""
        return ActivityFile(self.folder / ACTIVITY_FILE, shape)

    def windows_done(self, identity: Mapping[str, Any]) -> int:
        """How many windows of the text are in the file of activity, for this identity (JSON)."""
        try:
            file = self.folder / STATE_FILE
            if file.stat().st_size > MAX_STATE or not (self.folder / ACTIVITY_FILE).is_file():
                return 0
            data = parse_object(file.read_bytes(), str(file), MAX_STATE)
            done = field(data, "windows", int, str(file))
        except (OSError, CorruptModel):
            return 0
        return max(0, done) if data.get("identity") == dict(identity) else 0

    def note_windows(self, identity: Mapping[str, Any], done: int) -> None:
        """So many windows are in the file of activity, synced. Raises DiskFull, ModelIOError."""
        data = json.dumps({"identity": dict(identity), "windows": done}).encode()
        self._write(self.folder / STATE_FILE, data)

    def load_layer(self, layer: int, identity: str) -> tuple[Arrays, dict[str, Any]] | None:
        """The arrays and figures that were saved for a layer, if they are of this identity."""
        file = self._layer_file(layer)
        try:
            with safetensors.safe_open(file, "numpy") as stored:
                metadata = stored.metadata() or {}
                if metadata.get("identity") != identity:
                    return None
                arrays = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
            figures = parse_object(metadata["figures"].encode(), str(file), MAX_STATE)
        except (OSError, safetensors.SafetensorError, CorruptModel, KeyError):
            return None
        return arrays, figures

    def save_layer(
        self, layer: int, identity: str, arrays: Arrays, figures: Mapping[str, Any]
    ) -> None:
        """Keep what was found for a layer. Raises DiskFull, ModelIOError."""
        metadata = {"identity": identity, "figures": json.dumps(dict(figures))}
        arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        self._write(self._layer_file(layer), safetensors.numpy.save(arrays, metadata))

    def remove(self) -> None:
        """Remove the folder with all it holds."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextlib.contextmanager
    def translated(self) -> Iterator[None]:
        """Translate the system's errors about the folder into ours."""
        try:
            yield
        except OSError as error:
            raise write_error(self.folder, error) from None

    def _layer_file(self, layer: int) -> Path:
        return self.folder / f"layer-{layer:04d}.safetensors"

    def _write(self, file: Path, data: bytes) -> None:
        """Write a file whole, or leave what was there."""
        fresh = file.with_name(f"{file.name}.new")
        with self.translated():
            with fresh.open("wb") as opened_file:
                opened_file.write(data)
                opened_file.flush()
                os.fsync(opened_file.fileno())
            fresh.replace(file)
