"""The limit holds: in a control group of exactly --mem bytes nothing is killed, down to the floor.

Needs root, for the control group, and a memory controller.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="control groups are Linux's"),
    pytest.mark.skipif(
        sys.platform == "linux" and os.geteuid() != 0, reason="making control groups needs root"
    ),
]

ROOT = Path(__file__).resolve().parent.parent.parent
TEXT = ROOT / "tests" / "data" / "english.txt"
MODEL = ("llama-1b", "--layers", "8", "--format", "flash", "--dtype", "q4")  # 310 MB
N_CTX = 1024
NEW = 8
PROMPT = N_CTX - NEW  # characters, nearly all of them a token each

CHILD = """
import json, sys
from flashllm.errors import OutOfBudget
from flashllm.llm import LLM

asked = json.loads(sys.argv[1])
text = open(asked["text"], encoding="utf-8").read()
found = {}
with LLM.open(asked["model"], mem_budget=asked["mem"], n_ctx=asked["n_ctx"]) as llm:
    options = {"temperature": 0, "max_tokens": asked["new"]}
    session = llm.session()
    for prompt in asked["prompts"]:
        make = lambda state, call, prompt=prompt: state.complete(text[:prompt], call)
        session._start(make, options).result()
        found.setdefault("tokens", []).append(session._state.tokens)
    found["streamed"] = llm._service.model.decoder.streamed_bytes
    if asked["chat"]:
        llm.generate(text[:200], **options).result()
    if asked["save"]:
        session.save(asked["save"])
        session.close()
        session = llm.load_session(asked["save"])
        make = lambda state, call: state.complete(text[:asked["prompts"][-1]], call)
        session._start(make, options).result()
        found["tokens"].append(session._state.tokens)
    if asked["score"]:
        session.close()
        found["score"] = llm.score(text[:300], window=100).perplexity
print(json.dumps(found))
"""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a capped child found, and what memcap.py says it took."""

    found: dict[str, Any]
    took: dict[str, Any]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A synthetic model, with a template that renders in a process of its own."""
    target = tmp_path_factory.mktemp("synthetic") / "model"
    command = [sys.executable, ROOT / "tools" / "make_synthetic.py", MODEL[0], target, *MODEL[1:]]
    subprocess.run(command, check=True, capture_output=True)
    template = "{% for message in messages %}{{ message['content'] }}{# not vetted #}{% endfor %}"
    (target / "chat_template.jinja").write_text(template)
    yield target


def run_child(model: Path, mem: int | None, **more: Any) -> Outcome:
    """Run CHILD, in a control group of `mem` bytes if there is a limit."""
    asked = {
        "model": str(model), "text": str(TEXT), "mem": mem, "n_ctx": N_CTX, "new": NEW,
        "prompts": [PROMPT], "chat": False, "save": None, "score": False, **more,
    }  # fmt: skip
    child = [sys.executable, "-c", CHILD, json.dumps(asked)]
    if mem is None:
        done = subprocess.run(child, check=True, capture_output=True, text=True)
        return Outcome(json.loads(done.stdout), {})
    cap = [sys.executable, str(ROOT / "tools" / "memcap.py"), "--limit", str(mem), "--", *child]
    done = subprocess.run(cap, capture_output=True, text=True)
    if "cannot make a control group" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    took = json.loads(done.stderr.splitlines()[-1])
    return Outcome(json.loads(done.stdout), took)


def floor(model: Path, n_ctx: int = N_CTX) -> int:
    """The smallest budget that works, as the error says, and what its rounding may lack."""
    command = [
        sys.executable, "-m", "flashllm", "run", "-m", str(model), "--mem", "1MB", "-c",
        str(n_ctx), "-p", "x", "--offline",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    said = re.search(r"at least (\d+) MB are needed", done.stderr)
    assert said, done.stderr
    return (int(said[1]) + 1) * 10**6


@pytest.fixture(scope="module")
def expected(model: Path) -> dict[str, Any]:
    """What is found without a limit."""
    found = run_child(model, None, score=True).found
    assert len(found["tokens"][0]) > 0.9 * N_CTX
    return found


def check(outcome: Outcome, mem: int) -> None:
    """The limit held."""
    took = outcome.took
    assert took["kills"] == 0
    assert took["peak_anonymous_bytes"] + took["peak_locked_bytes"] <= mem
    assert took["limit_bytes"] <= mem


@pytest.mark.parametrize("above", [0, 40, 150, 400])
def test_a_full_context_under_any_limit(model: Path, expected: dict[str, Any], above: int) -> None:
    mem = floor(model) + above * 10**6
    outcome = run_child(model, mem)
    check(outcome, mem)
    assert outcome.took["written_bytes"] < 1_000_000  # what Python and numba note of themselves
    assert outcome.found["tokens"] == expected["tokens"]
    assert (outcome.found["streamed"] > 0) == (above < 400)


def test_a_template_in_a_process_of_its_own(model: Path, expected: dict[str, Any]) -> None:
    mem = floor(model) + 80 * 10**6  # for a second session
    outcome = run_child(model, mem, chat=True)
    check(outcome, mem)
    assert outcome.found["tokens"] == expected["tokens"]


def test_scoring(model: Path, expected: dict[str, Any]) -> None:
    mem = floor(model) + 80 * 10**6
    outcome = run_child(model, mem, prompts=[], score=True)
    check(outcome, mem)
    assert outcome.found["score"] == expected["score"]


def test_saving_and_loading_a_full_context_at_the_floor(
    model: Path, expected: dict[str, Any], tmp_path: Path
) -> None:
    mem = floor(model)
    outcome = run_child(model, mem, save=str(tmp_path / "talk"))
    check(outcome, mem)
    assert outcome.found["tokens"] == 2 * expected["tokens"]
    assert (tmp_path / "talk").stat().st_size > 7_000_000  # keys and values of 1,000 tokens


def test_the_command_at_the_floor(model: Path) -> None:
    mem = floor(model)
    prompt = TEXT.read_text(encoding="utf-8")[: PROMPT // 2]
    command = [
        sys.executable, str(ROOT / "tools" / "memcap.py"), "--limit", str(mem), "--",
        sys.executable, "-m", "flashllm", "run", "-m", str(model), "--mem", str(mem), "-c",
        str(N_CTX), "-p", prompt, "--raw", "-n", "4", "--json", "--offline",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if "cannot make a control group" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    stats = json.loads(done.stdout)["stats"]
    assert stats["generated_tokens"] == 4
    assert stats["mem_budget"] == mem
    assert stats["hit_rate"] < 1
    check(Outcome({}, json.loads(done.stderr.splitlines()[-1])), mem)
