"""The hidden folder that a model is written to, beside its target: locked, kept if it can go on.

`.NAME.partial` has one owner at a time, who holds `.NAME.lock`; its journal says what is being
written and how far that is. A killed process leaves both; the next one goes on or starts over.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from flashllm.errors import InvalidInput
from flashllm.flash.journal import FILE_NAME as JOURNAL
from flashllm.flash.journal import Entry, read_journal
from flashllm.flash.lock import locked
from flashllm.flash.output import write_error


def partial_folder(target: Path) -> Path:
    """Where the model that will be `target` is written."""
    return target.with_name(f".{target.name}.partial")


def remove_partial(target: Path) -> bool:
    """Remove what an unfinished conversion to `target` left; whether there was something.

    Raises InvalidInput if it is still at work, ModelIOError.
    """
    if not partial_folder(target).exists():
        return False
    with owned(target), _writing(target):
        shutil.rmtree(partial_folder(target))
    return True


@contextlib.contextmanager
def owned(target: Path) -> Iterator[None]:
    """Hold the lock on what `target` becomes, a half-done replacement of it undone first.

    Raises InvalidInput if another process holds it, ModelIOError.
    """

    def busy() -> None:
        raise InvalidInput(
            f"{target}: another process is writing it now; wait for that, or choose another place"
        )

    with locked(target.with_name(f".{target.name}.lock"), on_wait=busy, remove=True):
        with _writing(target):
            _recover(target)
        yield


class PartialFolder:
    """The folder of an owner, who alone may use it; `entries` is what its journal says is done."""

    def __init__(
        self,
        target: Path,
        identity: Mapping[str, Any],
        *,
        restart: bool = False,
        say: Callable[[str], None] = lambda text: None,
    ):
        """Take over what was left of the same identity (JSON), else begin with an empty folder.

        Raises DiskFull, ModelIOError.
        """
        self.target = target
        self.path = partial_folder(target)
        self.entries: list[Entry] = []
        with _writing(self.path):
            if self.path.exists():
                found, entries = read_journal(self.path / JOURNAL)
                if not restart and found == json.loads(json.dumps(dict(identity))):
                    self.entries = entries
                    return
                say(_why_over(found, restart))
                shutil.rmtree(self.path)
            self.path.mkdir()

    @property
    def journal(self) -> Path:
        """The journal's place."""
        return self.path / JOURNAL

    @property
    def nbytes(self) -> int:
        """Bytes of disk that its files take."""
        with _writing(self.path):
            stats = [file.stat() for file in self.path.iterdir()]
        return sum(512 * int(getattr(stat, "st_blocks", stat.st_size // 512)) for stat in stats)

    def publish(self, *, overwrite: bool) -> None:
        """Put the folder in the target's place. Every file in it is synced already.

        Raises InvalidInput if something is there that may not be overwritten, DiskFull,
        ModelIOError.
        """
        with _writing(self.target):
            sync_folder(self.path)
            if self.target.exists():
                if not overwrite:
                    raise InvalidInput(f"{self.target}: appeared while this model was written")
                old = _replaced(self.target)
                self.target.rename(old)
                try:
                    self.path.rename(self.target)
                except OSError:
                    old.rename(self.target)
                    raise
                shutil.rmtree(old, ignore_errors=True)
            else:
                self.path.rename(self.target)
            (self.target / JOURNAL).unlink(missing_ok=True)
            sync_folder(self.target)
            sync_folder(self.target.parent)

    def remove(self) -> None:
        """Remove it with all it holds."""
        shutil.rmtree(self.path, ignore_errors=True)


def sync_folder(folder: Path, system: str = os.name) -> None:
    """Have the disk hold the folder's entries; Windows does so itself and cannot be asked."""
    if system == "nt":
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _replaced(target: Path) -> Path:
    """Where a model is while another takes its place."""
    return target.with_name(f".{target.name}.old")


def _recover(target: Path) -> None:
    """Undo a replacement that was cut short between its two renames, or finish it."""
    old = _replaced(target)
    if old.exists():
        if target.exists():
            shutil.rmtree(old)
        else:
            old.rename(target)


def _why_over(found: dict[str, Any] | None, restart: bool) -> str:
    if restart:
        return "starting over, as told"
    if found is None:
        return "starting over: what an earlier conversion left cannot be read"
    return "starting over: an earlier conversion was of another source, or had other options"


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Translate the system's errors about `path` into ours."""
    try:
        yield
    except OSError as error:
        raise write_error(path, error) from None
