"""Tests of hub/repository.py and reference.py: any listing is refused or leads to safe names."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashllm.errors import CorruptModel, FlashError, ModelNotFound
from flashllm.hub.manifests import NAME
from flashllm.hub.reference import parse_reference
from flashllm.hub.repository import (
    PREFERRED,
    Choice,
    RepoFile,
    Repository,
    check_name,
    choose_gguf,
    choose_safetensors,
    wants_gguf,
)


def repository(*names: str) -> Repository:
    return Repository("a/b", "0" * 40, {name: RepoFile(name, 10) for name in names})


def gguf(quant: str | None, *names: str) -> Choice:
    return choose_gguf(repository(*names), quant)


@pytest.mark.parametrize(
    ("quant", "source"),
    [
        (None, "m-Q4_K_M.gguf"),
        ("q8_0", "m-Q8_0.gguf"),
        ("Q4_K", "m.Q4_K.gguf"),
        ("Q4_K_M", "m-Q4_K_M.gguf"),
        ("UD-Q4_K_M", "m-UD-Q4_K_M.gguf"),
        ("M-q8_0.gguf", "m-Q8_0.gguf"),
        ("BF16", "BF16/m-BF16-00001-of-00002.gguf"),
    ],
)
def test_a_quant_names_one_file(quant: str | None, source: str) -> None:
    choice = gguf(
        quant,
        "m-Q8_0.gguf",
        "m-Q4_K_M.gguf",
        "m-UD-Q4_K_M.gguf",
        "m.Q4_K.gguf",
        "BF16/m-BF16-00001-of-00002.gguf",
        "BF16/m-BF16-00002-of-00002.gguf",
        "mmproj-m-Q8_0.gguf",
        "m-imatrix.gguf",
        "README.md",
    )
    assert choice.source == source
    assert choice.dtype == "keep"


def test_without_a_preferred_quant_the_only_file_is_taken() -> None:
    assert gguf(None, "odd.gguf").label == "odd"
    with pytest.raises(ModelNotFound, match="several"):
        gguf(None, "odd.gguf", "even.gguf")
    with pytest.raises(ModelNotFound, match=r"it has IQ2_XXS, Q8_0, odd\.gguf"):
        gguf("Q4_0", "m-Q8_0.gguf", "m-IQ2_XXS.gguf", "odd.gguf")


def test_both_kinds_in_one_repository() -> None:
    both = repository("config.json", "model.safetensors", "m-Q4_0.gguf", "m-F16.gguf")
    assert not wants_gguf(both, None)
    assert wants_gguf(both, "Q4_0")
    assert not wants_gguf(both, "f16")  # our dtype
    assert wants_gguf(repository("config.json", "m-F16.gguf"), None)


def test_shards_must_be_there() -> None:
    listed = repository("config.json", "model.safetensors.index.json", "model-1.safetensors")
    choice = choose_safetensors(listed, {"a": "model-1.safetensors"}, None)
    assert {file.name for file in choice.files} == set(listed.files)
    with pytest.raises(CorruptModel, match="model-2"):
        choose_safetensors(listed, {"a": "model-2.safetensors"}, None)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../x",
        "a/../x",
        "/x",
        "a//x",
        "a\\x",
        "c:x",
        "a\0b",
        "a/./b",
        "x ",
        "x.",
        "a*",
    ],
)
def test_names_that_lead_elsewhere_are_not_used(name: str) -> None:
    with pytest.raises(CorruptModel):
        check_name(name)


@given(st.text(max_size=60))
def test_any_name_is_refused_or_stays_inside(name: str) -> None:
    try:
        check_name(name)
    except CorruptModel:
        return
    inside = Path("/base") / name
    assert not PurePosixPath(name).is_absolute()
    assert inside.resolve().is_relative_to(Path("/base").resolve())


names = st.lists(
    st.from_regex(
        r"(?:[a-z]{0,4}/)?[a-z.]{0,5}[-.]?(?:Q4_0|Q8_0|F16|IQ4_XS)?(?:-0000[0-3]-of-0000[0-3])?\.gguf",
        fullmatch=True,
    ),
    max_size=6,
)


@given(names, st.sampled_from([None, "Q4_0", "f16", "nothing", *PREFERRED]))
def test_any_listing_gives_a_choice_of_its_files_or_one_of_our_errors(
    listed: list[str], quant: str | None
) -> None:
    files = {}
    for name in listed:
        try:
            files[name] = RepoFile(name, 1)
        except CorruptModel:
            continue
    try:
        choice = choose_gguf(Repository("a/b", "0" * 40, files), quant)
    except FlashError as error:
        assert "\n" not in str(error)
        return
    assert {file.name for file in choice.files} <= set(files)
    assert choice.source in files


forms = st.from_regex(
    r"[A-Za-z0-9._-]{1,60}/[A-Za-z0-9._-]{1,96}(?:@[a-z0-9/._-]{1,60})?(?::[\w.-]{1,80})?",
    fullmatch=True,
)


@given(st.text(max_size=80) | forms)
def test_any_text_is_a_reference_with_a_name_that_the_store_takes_or_none(text: str) -> None:
    reference = parse_reference(text)
    if reference is not None:
        assert NAME.fullmatch(reference.store_name)
        assert parse_reference(str(reference)) == reference


@pytest.mark.parametrize(
    ("text", "repo", "revision", "quant"),
    [
        ("Qwen/Qwen3-8B", "Qwen/Qwen3-8B", "main", None),
        ("a/b:Q4_K_M", "a/b", "main", "Q4_K_M"),
        ("a/b@v1.0:q8", "a/b", "v1.0", "q8"),
        ("a/b@refs/pr/1", "a/b", "refs/pr/1", None),
        ("https://huggingface.co/a/b", "a/b", "main", None),
        ("hf.co/a/b:Q8_0", "a/b", "main", "Q8_0"),
    ],
)
def test_references(text: str, repo: str, revision: str, quant: str | None) -> None:
    found = parse_reference(text)
    assert found is not None
    assert (found.repo, found.revision, found.quant) == (repo, revision, quant)


@pytest.mark.parametrize(
    "text",
    ["a", "/a/b", "./a/b", "../a", "a/b/c", "a/b.gguf", "a/x.safetensors", "~/a", "a /b", "a/..b"],
)
def test_paths_are_no_references(text: str) -> None:
    assert parse_reference(text) is None
