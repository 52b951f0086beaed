"""Files of a repository into a folder: resumed where an earlier download ended, then checked."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flashllm.errors import CorruptModel, ModelNotFound
from flashllm.flash.output import write_error
from flashllm.hub.cache import cached_file
from flashllm.hub.headers import view_header
from flashllm.hub.repository import RepoFile, Repository
from flashllm.hub.workshop import Progress

if TYPE_CHECKING:
    from flashllm.hub.remote import Hub

_PART = ".part"
_PIECE = 4 << 20
_WEIGHTS = (".gguf", ".safetensors")


class Downloads:
    """The files of one repository: in Hugging Face's cache, in `folder`, or still on `hub`.

    hub is None if only what is in the cache may be used.
    """

    def __init__(self, hub: Hub | None, repository: Repository, folder: Path):
        self.hub = hub
        self.repository = repository
        self.folder = folder

    def cached(self, file: RepoFile) -> Path | None:
        """Where Hugging Face's cache holds the file; None if it does not."""
        return cached_file(self.repository, file)

    def missing_bytes(self, files: Sequence[RepoFile]) -> int:
        """How many bytes of `files` are still to come."""
        missing = 0
        for file in files:
            path = self.folder / file.name
            if not self.cached(file) and not _is_whole(path, file):
                missing += file.nbytes - min(_size(_part_of(path)), file.nbytes)
        return missing

    def link_cached(self, files: Sequence[RepoFile]) -> None:
        """Link from `folder` to what the cache holds; where the system refuses, do nothing."""
        for file in files:
            path = self.folder / file.name
            if (cached := self.cached(file)) and not path.exists():
                with contextlib.suppress(OSError):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.unlink(missing_ok=True)  # a link whose target has gone
                    path.symlink_to(cached.resolve())

    def fetch_all(self, files: Sequence[RepoFile], on_progress: Progress) -> None:
        """Bring `files` to the folder; on_progress counts their bytes. Raises as `fetch` does."""
        self.link_cached(files)
        total = sum(file.nbytes for file in files)
        done = 0

        def advance(nbytes: int) -> None:
            nonlocal done
            done += nbytes
            on_progress(done, total)

        for file in files:
            self.fetch(file, advance)

    def fetch(self, file: RepoFile, advance: Callable[[int], None] = lambda nbytes: None) -> Path:
        """Where `file` is on this computer, fetched unless it was; `advance` counts its bytes.

        An interrupted download stays as NAME.part and is gone on with. Raises what Hub.stream
        raises, CorruptModel (a wrong SHA-256: what came is deleted), DiskFull or ModelIOError.
        """
        path = self.folder / file.name
        if _is_whole(path, file):
            advance(file.nbytes)
            return path
        if self.hub is None:
            raise ModelNotFound(f"{file.name} is not on this computer")
        part = _part_of(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if _size(part) > file.nbytes:
                part.unlink()
            found = self._fill(self.hub, file, part, advance)
            if file.sha256 is not None and found != file.sha256:
                part.unlink()
                raise CorruptModel(
                    f"{file.name} came with the SHA-256 {found[:16]}…, the hub promised "
                    f"{file.sha256[:16]}…; it was damaged on the way, so it was deleted: pull again"
                )
            part.replace(path)
        except OSError as error:
            raise write_error(path, error) from None
        return path

    def small(self, file: RepoFile) -> Path:
        """Where a small file is on this computer; fetched if need be. Raises as `fetch` does."""
        return self.cached(file) or self.fetch(file)

    def view(self, files: Sequence[RepoFile], folder: Path) -> None:
        """Make `folder` a view of `files`: weights with holes for weights, the others whole.

        Raises as `fetch` does, and CorruptModel or UnsupportedModel for unsound headers.
        """
        for file in files:
            path = folder / file.name
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                if is_weights(path):
                    view_header(path, file.nbytes, self._reader(file))
                else:
                    path.write_bytes(self.small(file).read_bytes())
            except OSError as error:
                raise write_error(path, error) from None

    def _reader(self, file: RepoFile) -> Callable[[int, int], bytes]:
        """Reads bytes first .. end of a file, wherever it is."""

        def read(first: int, end: int) -> bytes:
            local = self.cached(file) or self.folder / file.name
            if self.hub is not None and not _is_whole(local, file):
                return self.hub.read(self.repository, file, first, end)
            with local.open("rb") as content:
                content.seek(first)
                return content.read(end - first)

        return read

    def _fill(self, hub: Hub, file: RepoFile, part: Path, advance: Callable[[int], None]) -> str:
        """Append to `part` what it lacks of `file`; returns the SHA-256 of all of it."""
        hasher = hashlib.sha256()
        with part.open("a+b") as out:
            out.seek(0)
            have = 0
            while piece := out.read(_PIECE):
                hasher.update(piece)
                advance(len(piece))
                have += len(piece)
            with contextlib.closing(hub.stream(self.repository, file, have)) as pieces:
                for piece in pieces:
                    out.write(piece)
                    hasher.update(piece)
                    advance(len(piece))
        return hasher.hexdigest()


def is_weights(path: Path) -> bool:
    """Whether a file of this name holds weights, whole or so far."""
    return path.name.lower().removesuffix(_PART).endswith(_WEIGHTS)


def _part_of(path: Path) -> Path:
    return path.with_name(path.name + _PART)


def _is_whole(path: Path, file: RepoFile) -> bool:
    return path.is_file() and path.stat().st_size == file.nbytes


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
