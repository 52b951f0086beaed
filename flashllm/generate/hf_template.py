"""The chat template of a Hugging Face folder, in whichever place it is kept."""

from __future__ import annotations

from pathlib import Path

from flashllm.errors import CorruptModel
from flashllm.generate.hf_settings import HFSettings, read_bounded, read_settings
from flashllm.generate.template import MAX_TEMPLATE_BYTES


def find_template(settings: HFSettings) -> str | None:
    """The source of the template for plain conversation; None if the folder has none.

    Looked for, in this order, in chat_template.jinja, tokenizer_config.json, chat_template.json,
    and additional_chat_templates. Of several named templates "default" is meant, else the first.
    Raises CorruptModel or ModelIOError.
    """
    folder = settings.folder
    found = _read(folder / "chat_template.jinja")
    if found is None:
        found = _choose(settings.tokenizer.get("chat_template"), folder / "tokenizer_config.json")
    if found is None:
        file = folder / "chat_template.json"
        found = _choose(read_settings(file).get("chat_template"), file)
    if found is None:
        found = _read(folder / "additional_chat_templates" / "default.jinja")
    if found is not None and len(found.encode("utf-8", "replace")) > MAX_TEMPLATE_BYTES:
        raise CorruptModel(f"{folder}: a chat template over {MAX_TEMPLATE_BYTES >> 20} MiB")
    return found


def _choose(value: object, file: Path) -> str | None:
    """The template in a setting: text, or a list of named ones, or an object of name to text."""
    if value is None or isinstance(value, str):
        return value or None
    if isinstance(value, dict):
        value = [{"name": name, "template": template} for name, template in value.items()]
    named: dict[str, str] = {}
    for entry in value if isinstance(value, list) else [None]:
        name, template = (
            (entry.get("name"), entry.get("template")) if isinstance(entry, dict) else (0, 0)
        )
        if not isinstance(name, str) or not isinstance(template, str):
            raise CorruptModel(f"{file}: chat_template is neither text nor a list of named texts")
        named[name] = template
    return named.get("default") or next(iter(named.values()), None)


def _read(file: Path) -> str | None:
    data = read_bounded(file, MAX_TEMPLATE_BYTES)
    if data is None:
        return None
    try:
        return data.decode().replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise CorruptModel(f"{file}: not UTF-8: {error}") from None
