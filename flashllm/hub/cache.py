"""Hugging Face's own cache on this computer: files found in it, files left in it.

Layout: huggingface.co/docs/huggingface_hub/guides/manage-cache. Read here without the library, so
that nothing heavy is imported to find what is already on the disk.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from flashllm.errors import CorruptModel
from flashllm.flash.output import write_error
from flashllm.hub.repository import RepoFile, Repository


def cache_folder() -> Path:
    """Where Hugging Face's tools keep downloads: $HF_HUB_CACHE, $HF_HOME/hub, or ~/.cache."""
    if chosen := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(os.path.expandvars(chosen)).expanduser()
    if home := os.environ.get("HF_HOME"):
        return Path(os.path.expandvars(home)).expanduser() / "hub"
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "huggingface" / "hub"


def cached_repository(repo: str, revision: str) -> Repository | None:
    """What the cache holds of `repo` at `revision`, as if that were the whole repository."""
    ref = _folder(repo) / "refs" / revision
    commit = ref.read_text(encoding="utf-8").strip() if ref.is_file() else revision
    snapshot = _snapshot(repo, commit)
    if not commit or not snapshot.is_dir():
        return None
    files = {}
    for path in sorted(snapshot.rglob("*")):
        if path.is_file():
            name = path.relative_to(snapshot).as_posix()
            try:
                files[name] = RepoFile(name, path.stat().st_size)
            except CorruptModel:
                continue  # A name we never use, as when the hub lists it.
    return Repository(repo, commit, files) if files else None


def cached_file(repository: Repository, file: RepoFile) -> Path | None:
    """Where the cache holds `file`, whole; None if it does not."""
    path = _snapshot(repository.repo, repository.commit) / file.name
    return path if path.is_file() and path.stat().st_size == file.nbytes else None


def snapshot_folder(repository: Repository) -> Path:
    """Where the cache has the files of this commit, under their names in the repository."""
    return _snapshot(repository.repo, repository.commit)


def leave_in_cache(repository: Repository, revision: str, file: RepoFile, source: Path) -> None:
    """Move the fetched file `source` to the cache. Raises DiskFull or ModelIOError.

    Its content goes to blobs/, under the hub's name for it, and the snapshot links there; where
    the system has no links, the file itself goes to the snapshot, as the library does it.
    """
    folder = _folder(repository.repo)
    place = _snapshot(repository.repo, repository.commit) / file.name
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        if file.blob and file.blob.isalnum():
            blob = folder / "blobs" / file.blob
            blob.parent.mkdir(exist_ok=True)
            shutil.move(source, blob)
            try:
                place.symlink_to(os.path.relpath(blob, place.parent))
            except OSError:
                shutil.move(blob, place)
        else:
            shutil.move(source, place)
        if revision != repository.commit:
            ref = folder / "refs" / revision
            ref.parent.mkdir(parents=True, exist_ok=True)
            ref.write_text(repository.commit, encoding="utf-8")
    except OSError as error:
        raise write_error(place, error) from None


def _folder(repo: str) -> Path:
    return cache_folder() / ("models--" + repo.replace("/", "--"))


def _snapshot(repo: str, commit: str) -> Path:
    return _folder(repo) / "snapshots" / commit
