"""Tests of the manifests in models/: each is sound, its figures agree, a malformed one is named."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from flashllm.errors import CorruptModel
from flashllm.hub import manifests
from flashllm.hub.shapes import config_of
from flashllm.hub.sources import HubSource
from flashllm.model.roles import roles

GOOD = (manifests.CHECKOUT / "smollm2-135m-instruct.toml").read_text()
HUB = (manifests.CHECKOUT / "qwen3-8b.toml").read_text()
KNOWN = manifests.known([manifests.CHECKOUT])


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


def test_the_models_that_most_people_run_are_known() -> None:
    assert len(KNOWN) >= 20
    for name in (
        "llama3.1", "llama3.2:1b", "llama2", "mistral", "mistral-nemo", "qwen2.5:7b", "qwen3:8b",
        "qwen3", "gemma2", "gemma3:4b", "phi4", "phi3.5", "olmo2", "smollm2", "smollm3",
        "granite3.3", "falcon3", "stablelm2", "tinyllama", "deepseek-r1",
    ):  # fmt: skip
        assert manifests.find(name) is not None, name


@pytest.mark.parametrize("manifest", KNOWN.values(), ids=list(KNOWN))
def test_a_manifest_agrees_with_itself(manifest: manifests.Manifest) -> None:
    config = config_of(manifest)
    assert config.family == manifest.architecture
    assert config.context_length == manifest.context
    assert sum(math.prod(shape) for shape in roles(config).values()) == manifest.parameters
    assert manifest.homepage.startswith("https://huggingface.co/")
    assert re.fullmatch(r"[A-Za-z0-9.-]+", manifest.licence)
    if isinstance(manifest.source, HubSource):
        assert manifest.homepage == f"https://huggingface.co/{manifest.source.repo}"
        assert manifest.download_bytes == 2 * manifest.parameters
    assert (manifests.CHECKOUT / f"{manifest.name}.toml").is_file()


@pytest.mark.parametrize(
    ("name", "parameters"),
    [  # as the models' cards state them
        ("llama-3.1-8b-instruct", 8.03e9),
        ("llama-3.2-1b-instruct", 1.24e9),
        ("mistral-7b-instruct-v0.3", 7.25e9),
        ("qwen2.5-7b-instruct", 7.62e9),
        ("qwen3-8b", 8.19e9),
        ("gemma-2-9b-it", 9.24e9),
        ("phi-4", 14.7e9),
        ("smollm2-1.7b-instruct", 1.71e9),
        ("pythia-1.4b", 1.41e9),
    ],
)
def test_parameters_are_as_published(name: str, parameters: float) -> None:
    assert KNOWN[name].parameters == pytest.approx(parameters, rel=5e-3)


def test_a_quant_may_follow_a_name() -> None:
    qwen = KNOWN["qwen3-8b"]
    assert manifests.find_with_quant("qwen3:8b") == (qwen, None)  # an alias, colon and all
    assert manifests.find_with_quant("qwen3:8b:q8") == (qwen, "q8")
    assert manifests.find_with_quant("qwen3-8b:keep") == (qwen, "keep")
    assert manifests.find_with_quant("nothing:q8") is None
    assert [qwen.quant(asked) for asked in (None, "q8", "keep")] == ["q4", "q8", "bf16"]
    assert isinstance(qwen.source, HubSource)
    assert str(qwen.source.reference("f16")) == "Qwen/Qwen3-8B:f16"
    assert KNOWN["smollm2-135m-instruct"].quant() == "Q4_1"


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
        (r"(?m)^repo = .*$", 'repo = "../../etc"', "repository"),
        (r"(?m)^repo = .*$", "repo = 3", "repo"),
        (r"(?m)^revision = .*$", 'revision = "a b"', "repository"),
        (r"(?m)^dtype = .*$", 'dtype = "q5"', "dtype"),
        (r"(?m)^dtype = .*$", 'dtype = "q4"\ngated = 1', "gated"),
        (r"(?m)^dtype = .*$", 'dtype = "q4"\nfile = "Q4_0"', "no file"),
        (r"(?m)^dtype = .*$", 'dtype = "q4"\nbranch = "x"', "branch"),
        (r"(?m)^aliases = .*$", 'aliases = ["a:b:c"]', "alias"),
    ],
)
def test_a_malformed_source_is_named(
    tmp_path: Path, pattern: str, replacement: str, complaint: str
) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(re.sub(pattern, replacement, HUB, count=1))
    with pytest.raises(CorruptModel, match=complaint):
        manifests.read_manifest(path)


@pytest.mark.parametrize(
    ("pattern", "replacement", "complaint"),
    [
        (r"(?m)^name = .*$", 'name = "../escape"', "name"),
        (r"(?m)^name = .*$", "", "name"),
        (r"(?m)^name = .*$", 'name = "a"\nunknown = 1', "unknown"),
        (r"(?m)^context = .*$", "context = true", "context"),
        (r"(?m)^licence = .*$", "licence = 3", "licence"),
        (r"(?m)^kind = .*$", 'kind = "torrent"', "pip-wheel"),
        (r"(?m)^kind = .*$", 'kind = ["hub"]', "pip-wheel"),
        (r"(?m)^parameters = .*$", "parameters = 0", "parameters"),
        (r"(?m)^quant = .*$", 'quant = ""', "quant"),
        (r"(?m)^torch_dtype = .*$", 'torch_dtype = "int8"', "torch_dtype"),
        (r"(?ms)^\[shape\].*", "", "shape"),
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
