"""The real model for the slow ring: the default one, from the user's store."""

from __future__ import annotations

from pathlib import Path

import pytest

from flashllm.errors import ModelNotFound
from flashllm.hub import store
from flashllm.hub.manifests import DEFAULT_MODEL

DATA = Path(__file__).resolve().parent.parent / "data"


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of stored references."""
    return DATA


@pytest.fixture(scope="session")
def model_path() -> Path:
    """The default model's folder; FLASHLLM_HOME may say where the store is."""
    try:
        return store.find(DEFAULT_MODEL)
    except ModelNotFound:
        pytest.skip(f"{DEFAULT_MODEL} is not in the store; get it with `flashllm pull`")
