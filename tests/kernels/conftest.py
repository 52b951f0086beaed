"""The two backends, opened once for each file of tests."""

from __future__ import annotations

import pytest

from flashllm import kernels


@pytest.fixture(scope="module")
def cpu():
    backend = kernels.load("cpu", threads=2)
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def twin():
    return kernels.load("reference")
