"""A model of the Hugging Face hub into the store: chosen, planned, downloaded, converted."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from flashllm.errors import CorruptModel, DownloadError, FlashError, ModelNotFound
from flashllm.flash.lock import locked
from flashllm.flash.output import write_error
from flashllm.formats.hf import INDEX, MAX_INDEX, SINGLE, read_json
from flashllm.hub import store
from flashllm.hub.cache import cache_folder, cached_repository, leave_in_cache, snapshot_folder
from flashllm.hub.download import Downloads, is_weights
from flashllm.hub.origin import Origin, write_origin
from flashllm.hub.reference import HubReference
from flashllm.hub.repository import (
    Choice,
    Repository,
    choose_gguf,
    choose_safetensors,
    wants_gguf,
)
from flashllm.hub.workshop import Outlook, Workshop, check_room
from flashllm.sizes import format_size

if TYPE_CHECKING:
    from flashllm.hub.remote import Hub


@dataclasses.dataclass(frozen=True)
class HubPull:
    """One model to bring from the hub.

    name: what to call it in the store; None makes a name of the reference. offline: use only what
    Hugging Face's cache holds. keep_download: leave the files in that cache afterwards.
    """

    reference: HubReference
    workshop: Workshop
    name: str | None = None
    offline: bool = False
    keep_download: bool = False
    token: str | None = None

    def run(self) -> Path:
        """The model's folder in the store, brought there first unless it is there.

        An interrupted download stays, and the next one of the same commit goes on with it. Raises
        ModelNotFound, DownloadError, CorruptModel, UnsupportedModel, InvalidInput, DiskFull or
        ModelIOError.
        """
        hub, repository = self._open()
        workspace = store.workspace_for(repository.repo, repository.commit)

        def tell_waiting() -> None:
            self.workshop.say(f"another flashllm is fetching {repository.repo}; waiting for it")

        with locked(store.lock_of(workspace), on_wait=tell_waiting), _tidy(workspace):
            downloads = Downloads(hub, repository, workspace / repository.repo.split("/")[1])
            choice = self._choose(downloads)
            named = dataclasses.replace(self.reference, quant=choice.label)
            target = store.place_for(self.name or named.store_name)
            if not store.is_model(target):
                self._bring(downloads, choice, target)
            shutil.rmtree(workspace, ignore_errors=True)
            return target

    def plan(self) -> Outlook:
        """What the workshop plans for the model, from its headers: nothing is left on the disk.

        Raises as `run` does.
        """
        hub, repository = self._open()
        with tempfile.TemporaryDirectory() as folder, _tidy(Path(folder)):
            downloads = Downloads(hub, repository, Path(folder) / repository.repo.split("/")[1])
            return self._outlook(downloads, self._choose(downloads))

    def _open(self) -> tuple[Hub | None, Repository]:
        """The repository, and the hub it is on: None if only what is in the cache is used."""
        repo, revision = self.reference.repo, self.reference.revision
        cached = cached_repository(repo, revision)
        if self.offline:
            if cached is None:
                raise ModelNotFound(
                    f"{self.reference} is neither in the store nor in Hugging Face's cache "
                    f"({cache_folder()}), and fetching is switched off; run `flashllm pull "
                    f"{self.reference}` once with a network"
                )
            return None, cached
        hub = _connect(self.token)
        try:
            return hub, hub.repository(repo, revision)
        except DownloadError as error:
            if cached is None:
                raise
            self.workshop.say(f"using what Hugging Face's cache holds, for {error}")
            return None, cached

    def _choose(self, downloads: Downloads) -> Choice:
        """The files of the model that was asked for."""
        repository, quant = downloads.repository, self.reference.quant
        try:
            if wants_gguf(repository, quant):
                return choose_gguf(repository, quant)
            weight_map = None
            if SINGLE not in repository.files:
                weight_map = _weight_map(downloads.small(repository.get(INDEX)))
            return choose_safetensors(repository, weight_map, quant)
        except FlashError as error:
            if downloads.hub is not None:
                raise
            raise ModelNotFound(
                f"Hugging Face's cache does not hold all of {self.reference}: {error}"
            ) from None

    def _bring(self, downloads: Downloads, choice: Choice, target: Path) -> None:
        """Plan, download, convert."""
        workshop, repository = self.workshop, downloads.repository
        licence = repository.licence or "licence not told"
        workshop.say(
            f"reading the headers of {self.reference} ({format_size(choice.nbytes)} in "
            f"{len(choice.files)} files, {licence})"
        )
        outlook = self._outlook(downloads, choice)
        workshop.say(f"{outlook.summary}.")
        missing = downloads.missing_bytes(choice.files)
        check_room(target.parent, missing + outlook.stored_bytes, f"fetching {self.reference}")
        if missing:
            workshop.say(f"fetching {format_size(missing)} of {repository.repo}")
            downloads.fetch_all(choice.files, workshop.on_progress)
        source = self._source(downloads, choice)
        workshop.say(f"converting {self.reference} to {target}")
        workshop.convert(
            source,
            target,
            dtype=choice.dtype,
            name=target.name,
            overwrite=False,
            on_progress=workshop.on_progress,
            on_message=workshop.say,
        )
        write_origin(target, self._origin(repository, choice))
        if self.keep_download:
            for file in choice.files:
                if (path := downloads.folder / file.name).is_file() and not path.is_symlink():
                    leave_in_cache(repository, self.reference.revision, file, path)

    def _outlook(self, downloads: Downloads, choice: Choice) -> Outlook:
        """What the headers tell, read where the files are, or through holes."""
        missing = downloads.missing_bytes(choice.files)
        if not missing:
            return self.workshop.plan(self._source(downloads, choice), choice.dtype, 0)
        view = downloads.folder.parent / "headers" / downloads.folder.name
        try:
            downloads.view(choice.files, view)
            return self.workshop.plan(view / choice.source, choice.dtype, missing)
        except FlashError as error:
            error.args = (str(error).replace(str(view), self.reference.repo), *error.args[1:])
            raise
        finally:
            shutil.rmtree(view.parent, ignore_errors=True)

    def _source(self, downloads: Downloads, choice: Choice) -> Path:
        """Where the files of `choice` lie together: in Hugging Face's cache, or in the workspace.

        Names in the cache may be links, so what is opened there is the name, not its target.
        """
        if all(downloads.cached(file) for file in choice.files):
            return snapshot_folder(downloads.repository) / choice.source
        downloads.link_cached(choice.files)
        return downloads.folder / choice.source

    def _origin(self, repository: Repository, choice: Choice) -> Origin:
        marks = {file.name: file.sha256 or str(file.nbytes) for file in choice.files}
        revision, commit = self.reference.revision, repository.commit
        return Origin(repository.repo, marks, revision, commit, repository.licence)


def _connect(token: str | None) -> Hub:
    """The hub. Its module takes 0.2 s to import, so only who needs the network waits for that."""
    hub: Hub = importlib.import_module("flashllm.hub.remote").Hub(token=token)
    return hub


@contextlib.contextmanager
def _tidy(workspace: Path) -> Iterator[None]:
    """Remove the workspace afterwards, unless it holds weights that a later pull can use."""
    try:
        yield
    except OSError as error:
        raise write_error(workspace, error) from None
    finally:
        if workspace.is_dir() and not any(is_weights(path) for path in workspace.rglob("*")):
            shutil.rmtree(workspace, ignore_errors=True)


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor to file name, as the index of a sharded model tells."""
    weight_map = read_json(index, MAX_INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CorruptModel(f"{index.name}: has no weight_map")
    for shard in weight_map.values():
        if not isinstance(shard, str) or not shard.endswith(".safetensors") or "/" in shard:
            raise CorruptModel(f"{index.name}: {shard!r:.80} is not the name of a safetensors file")
    return weight_map
