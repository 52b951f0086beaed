"""Tests of chat templates: rendered as transformers does, hostile ones stopped in time."""

from __future__ import annotations

import io
import json
import sys
import time
from pathlib import Path

import pytest

from flashllm.errors import CorruptModel, InvalidInput, ModelIOError, UnsupportedModel
from flashllm.generate import template_child, template_process
from flashllm.generate.template import CHATML, ChatTemplate, Message, read_template
from flashllm.generate.template_process import ChildRenderer

TALK = [Message("system", "Be brief."), Message("user", "Hi"), Message("assistant", "Hello.")]

# Written for transformers: whitespace control, its helpers, loop controls, the generation tag.
FANCY = """{%- if messages[0]['role'] == 'system' %}
  {%- set system = messages[0]['content'] | trim %}
  {%- set messages = messages[1:] %}
{%- endif %}
{{- bos_token }}[{{ system }}]
{%- for message in messages %}
  {%- if message['role'] == 'tool' %}{% continue %}{% endif %}
  {%- if message['role'] not in ['user', 'assistant'] %}
    {{- raise_exception('Only user and assistant roles are supported!') }}
  {%- endif %}
{% generation %}{{ message | tojson }}{% endgeneration %}

{%- endfor %}
{%- if add_generation_prompt %}>{{ eos_token }}{% endif %}"""


@pytest.fixture
def child():
    renderer = ChildRenderer()
    yield renderer
    renderer.close()


def test_chatml() -> None:
    text = ChatTemplate(CHATML).render(TALK[:2])
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert (
        not ChatTemplate(CHATML).render(TALK, add_generation_prompt=False).endswith("assistant\n")
    )


def test_what_transformers_templates_rely_on(child: ChildRenderer) -> None:
    template = ChatTemplate(FANCY, bos_token="<s>", eos_token="</s>")
    try:
        text = template.render([*TALK, Message("tool", "no"), Message("user", "日本 <b>")])
        assert text == (
            '<s>[Be brief.]{"role": "user", "content": "Hi"}'
            '{"role": "assistant", "content": "Hello."}{"role": "user", "content": "日本 <b>"}></s>'
        )
    finally:
        template.close()


def test_dates(child: ChildRenderer) -> None:
    assert child.render("{{ strftime_now('%Y') }}", {}) == time.strftime("%Y")


def test_a_template_may_refuse_messages(child: ChildRenderer) -> None:
    with pytest.raises(InvalidInput, match="refuses this: roles must alternate"):
        child.render("{{ raise_exception('roles must alternate') }}", {})
    assert child.render("ok", {}) == "ok"


HOSTILE = {
    "endless loops": "{% for a in range(99999) %}{% for b in range(99999) %}"
    "{% endfor %}{% endfor %}",
    "a huge string": "{{ 'x' * 1000000000 }}",
    "a doubling string": "{% set n = namespace(s='x') %}{% for i in range(60) %}"
    "{% set n.s = n.s + n.s %}{% endfor %}{{ n.s | length }}",
    "many strings": "{% set n = namespace(s=[]) %}{% for i in range(99999) %}"
    "{% set n.s = n.s + ['x' * 100000] %}{% endfor %}",
    "deep recursion": "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "attributes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "changes to messages": "{{ messages.append(1) }}",
    "format": "{{ '{0.__class__}'.format(1) }}",
    "format_map": "{{ '{a.__class__}'.format_map({'a': 1}) }}",
    "a power": "{{ 9 ** 9 ** 9 }}",
    "syntax": "{% for %}",
    "an import": "{% import 'os' as os %}",
    "a filter's width": "{{ '%0999999999d' | format(1) }}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates_are_stopped(name: str, child: ChildRenderer) -> None:
    start = time.monotonic()
    with pytest.raises(CorruptModel) as caught:
        text = child.render(HOSTILE[name], {"messages": []})
        assert "class" not in text, "the sandbox leaks"
        raise CorruptModel("harmless")
    assert time.monotonic() - start < 2 * template_process.TIME_LIMIT_S
    assert "\n" not in str(caught.value)
    assert child.render("{{ 1 + 1 }}", {}) == "2"


def test_without_the_systems_limits_the_parent_still_watches_memory(
    child: ChildRenderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_process, "ADDRESS_SPACE_LIMIT", 1 << 50)
    grow = "{% set n = namespace(s='x') %}{% for i in range(40) %}{% set n.s = n.s + n.s %}"
    with pytest.raises(CorruptModel, match="256 MiB"):
        child.render(grow + "{% endfor %}", {})


def test_a_child_that_dies_is_replaced(child: ChildRenderer) -> None:
    assert child.render("a", {}) == "a"
    child.close()
    assert child.render("b", {}) == "b"


def test_a_frozen_application_refuses_rather_than_starting_itself() -> None:
    for renderer in (ChildRenderer(frozen=True), ChildRenderer(executable="")):
        with pytest.raises(UnsupportedModel, match="frozen"):
            renderer.render("a", {})


def test_an_executable_that_is_no_python_is_refused() -> None:
    true = Path("/bin/true")
    if not true.exists():
        pytest.skip("no /bin/true here")
    with pytest.raises(UnsupportedModel, match="did not start"):
        ChildRenderer(executable=str(true)).render("a", {})


def test_the_child_answers_line_by_line() -> None:
    requests = [
        {"source": "{{ a }}", "variables": {"a": "x\ny"}},
        {"source": "{{", "variables": {}},
    ]
    answers = io.StringIO()
    lines = io.StringIO("".join(json.dumps(request) + "\n" for request in requests))
    limits = {"memory_bytes": sys.maxsize, "cpu_s": 10_000}
    template_child.serve(lines, answers, **limits)
    ready, good, bad = map(json.loads, answers.getvalue().splitlines())
    assert ready == {"ready": True}
    assert good == {"text": "x\ny"}
    assert "broken" in bad


def test_messages_are_checked() -> None:
    with pytest.raises(InvalidInput, match="role"):
        Message("root", "x")  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="text"):
        Message("user", None)  # type: ignore[arg-type]


def test_reading_templates(tmp_path: Path) -> None:
    assert read_template(tmp_path) is None
    file = tmp_path / "chat_template.jinja"
    file.write_bytes("a\r\né".encode())
    assert read_template(tmp_path) == "a\r\né"
    file.write_bytes(b"\xff")
    with pytest.raises(CorruptModel, match="UTF-8"):
        read_template(tmp_path)
    file.write_bytes(b" " * (2 << 20))
    with pytest.raises(CorruptModel, match="larger"):
        read_template(tmp_path)
    file.unlink()
    file.mkdir()
    with pytest.raises((ModelIOError, CorruptModel), match="chat_template"):
        read_template(tmp_path)
