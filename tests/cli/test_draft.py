"""The flags of speculative decoding, through the programs that reply."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny

from flashllm.cli.main import main

RUN = ["run", "--raw", "-p", "the capital of france", "-n", "9", "--temp", "0", "-c", "64"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.model_dir(tmp_path_factory.mktemp("draft")))


def test_a_reply_says_how_many_guesses_were_right(
    folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model, draft = ["-m", folder, "-t", "1"], ["--draft", folder, "--draft-tokens", "3"]
    told = []
    for more in ([], draft):
        assert main([*RUN, *model, "--json", *more]) == 0
        told.append(json.loads(capsys.readouterr().out))
    plain, helped = told
    assert helped["text"] == plain["text"]
    assert plain["stats"]["guessed_tokens"] == 0
    assert helped["stats"]["accepted_tokens"] == helped["stats"]["guessed_tokens"] == 6
    for more, said in (([], False), (draft, True)):
        assert main([*RUN, *model, "--stats", *more]) == 0
        assert ("6 of 6 guesses right" in capsys.readouterr().err) is said


def test_where_a_draft_can_do_nothing_it_is_refused(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text"
    text.write_text(tiny.CORPUS)
    draft = ["-m", folder, "--draft", folder]
    assert main(["eval", str(text), *draft]) != 0
    assert "leave out --draft" in capsys.readouterr().err
    assert main([*RUN, *draft, "--sparse", "gate", "--draft-tokens", "8"]) != 0
    assert "choose 1 to 7" in capsys.readouterr().err
