"""Tests of cli/main.py: lazy verbs, one line for an error, and the documented exit codes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import types
from pathlib import Path

import click
import pytest

from flashllm import errors
from flashllm.cli import main as cli_main
from flashllm.cli.main import VERBS, main

ROOT = Path(__file__).parents[2]


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """Makes `flashllm ls` do whatever a test says."""
    module = types.ModuleType("flashllm.cli.ls")
    monkeypatch.setitem(sys.modules, "flashllm.cli.ls", module)
    return module


def run(*args: str, **kwargs: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flashllm", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **kwargs)


def test_help_names_every_verb_and_imports_none_of_the_heavy_parts() -> None:
    script = (
        "import sys; from flashllm.cli.main import main; main(['--help']);"
        "heavy = {'numpy', 'numba', 'llvmlite', 'rich', 'prompt_toolkit', 'jinja2', 'tokenizers'};"
        "print('heavy:', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "heavy: []" in done.stdout
    assert all(re.search(rf"^  {verb} ", done.stdout, re.MULTILINE) for verb in VERBS)


def test_every_verb_is_documented() -> None:
    documented = (ROOT / "docs" / "cli.md").read_text()
    assert all(re.search(rf"^\| `{verb}[ `]", documented, re.MULTILINE) for verb in VERBS)


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"Usage: flashllm {name}")


def test_no_verb_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "Commands:" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert re.fullmatch(r"flashllm (\d+\.\d+\.\d+|\(not installed\))\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    "args",
    [
        ["nonsense"],
        ["ls", "--nonsense"],
        ["rm"],
        ["run", "-t", "none"],
        ["chat", "--mem", "much"],
        ["chat", "--temp", "-1"],
    ],
)
def test_a_bad_flag_is_one_line_and_exit_code_2(
    args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(args) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("flashllm: error: ")
    assert "--help" in captured.err
    assert captured.err.count("\n") == 1


def flash_errors(root: type[errors.FlashError]) -> list[type[errors.FlashError]]:
    return [root, *(leaf for child in root.__subclasses__() for leaf in flash_errors(child))]


@pytest.mark.parametrize("error", flash_errors(errors.FlashError))
def test_every_error_is_one_line_and_its_own_documented_exit_code(
    error: type[errors.FlashError],
    verb: types.ModuleType,
    capsys: pytest.CaptureFixture[str],
) -> None:
    @click.command()
    def command() -> None:
        raise error("first line\nsecond line")

    verb.command = command
    assert main(["ls"]) == error.exit_code
    assert capsys.readouterr().err == "flashllm: error: first line second line\n"
    assert f"| {error.exit_code} | " in (ROOT / "docs" / "cli.md").read_text()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (KeyboardInterrupt(), cli_main.INTERRUPTED),
        (click.Abort(), cli_main.INTERRUPTED),
        (MemoryError(), errors.OutOfBudget.exit_code),
    ],
)
def test_other_ends(error: BaseException, code: int, verb: types.ModuleType) -> None:
    @click.command()
    def command() -> None:
        raise error

    verb.command = command
    assert main(["ls"]) == code


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    script = (
        "import sys, types, click\n"
        "from flashllm.cli.main import main\n"
        "module = types.ModuleType('flashllm.cli.ls')\n"
        "module.command = click.command()(lambda: [click.echo('x' * 1000) for _ in range(1000)])\n"
        "sys.modules['flashllm.cli.ls'] = module\n"
        "sys.exit(main(['ls']))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == cli_main.BROKEN_PIPE


def test_the_module_is_the_command(tmp_path: Path) -> None:
    environment = os.environ | {"FLASHLLM_HOME": str(tmp_path)}
    done = run("show", "nothing", env=environment)
    assert done.returncode == 3
    assert done.stderr.startswith("flashllm: error: no model called 'nothing'")
    assert done.stdout == ""
