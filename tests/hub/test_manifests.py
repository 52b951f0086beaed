"""Tests of hub/manifests.py: the shipped manifests are sound, and a malformed one is named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from flashllm.errors import CorruptModel
from flashllm.hub import manifests

GOOD = (manifests.CHECKOUT / "smollm2-135m-instruct.toml").read_text()


def test_the_default_model_is_known_by_name_and_alias() -> None:
    default = manifests.find(manifests.DEFAULT_MODEL)
    assert default is not None
    assert default.licence == "Apache-2.0"
    assert all(manifests.find(alias) == default for alias in default.aliases)
    assert manifests.find("SmolLM2") == default
    assert manifests.find("no-such-model") is None


def test_names_and_aliases_never_clash() -> None:
    names = [n for m in manifests.known().values() for n in (m.name, *m.aliases)]
    assert len(names) == len(set(names))


def test_an_installed_package_wins_over_a_checkout(tmp_path: Path) -> None:
    installed = tmp_path / "installed"
    installed.mkdir()
    assert "smollm2-135m-instruct" in manifests.known([installed, manifests.CHECKOUT])
    (installed / "x.toml").write_text(re.sub(r"(?m)^name = .*$", 'name = "other"', GOOD))
    assert list(manifests.known([installed, manifests.CHECKOUT])) == ["other"]
    assert manifests.known([tmp_path / "nowhere"]) == {}


@pytest.mark.parametrize(
    ("pattern", "replacement", "complaint"),
    [
        (r"(?m)^name = .*$", 'name = "../escape"', "name"),
        (r"(?m)^name = .*$", "", "name"),
        (r"(?m)^name = .*$", 'name = "a"\nunknown = 1', "unknown"),
        (r"(?m)^context = .*$", "context = true", "context"),
        (r"(?m)^licence = .*$", "licence = 3", "licence"),
        (r"(?m)^kind = .*$", 'kind = "torrent"', "pip-wheel"),
        (r"(?m)^requirement = .*$", 'requirement = "--index-url=http://x"', "requirement"),
        (r"(?m)^version = .*$", 'version = "1 --pre"', "version"),
        (r"(?m)^sha256 = .*$", 'sha256 = "abc"', "sha256"),
        (r"(?m)^bytes = .*$", "bytes = -1", "bytes"),
        (r"(?m)^member = .*$", 'member = "x.py"', "member"),
        (r"(?m)^top_p = .*$", 'top_p = "high"', "top_p"),
        (r"(?m)^top_p = .*$", "wit = 3", "wit"),
        (r"(?m)^aliases = .*$", 'aliases = "a"', "aliases"),
        (r"^", "= = =", "Invalid"),
    ],
)
def test_a_malformed_manifest_is_named(
    tmp_path: Path, pattern: str, replacement: str, complaint: str
) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(re.sub(pattern, replacement, GOOD, count=1))
    with pytest.raises(CorruptModel, match=complaint) as caught:
        manifests.read_manifest(path)
    assert "bad.toml" in str(caught.value)
