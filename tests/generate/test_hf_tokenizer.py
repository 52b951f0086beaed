"""Tests of tokenisers from Hugging Face folders: the `tokenizers` library is the judge of ids."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import spm
import tiny
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from flashllm.errors import ModelNotFound
from flashllm.generate.tokenizer import Tokenizer, files_from_gguf, files_from_hf

GGUF = tiny.tokenizer_metadata(320)
LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
BYTE_LEVEL = {
    "version": "1.0",
    "added_tokens": [spm.added(i, text, special=True) for i, text in enumerate(tiny.SPECIALS)],
    "normalizer": None,
    "pre_tokenizer": {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Digits", "individual_digits": True},
            LEVEL,
        ],
    },
    "post_processor": None,
    "decoder": LEVEL,
    "model": {
        "type": "BPE",
        "vocab": {token: i for i, token in enumerate(GGUF["tokenizer.ggml.tokens"])},
        "merges": GGUF["tokenizer.ggml.merges"],
    },
}
UNIGRAM = {
    **BYTE_LEVEL,
    "added_tokens": [spm.added(0, "<unk>", special=True), spm.added(2, "</s>", special=True)],
    "normalizer": {"type": "NFKC"},
    "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"},
    "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"},
    "model": {
        "type": "Unigram",
        "unk_id": 0,
        "vocab": [[piece.text, piece.score] for piece in spm.model("unigram with rules").pieces],
    },
}
DOCUMENTS = {
    "byte-level": BYTE_LEVEL,
    "llama 2, legacy": spm.tokenizer_json(spm.model("bpe")),
    "llama 2": spm.tokenizer_json(spm.model("bpe"), legacy=False),
    "gemma": spm.tokenizer_json(spm.model("bpe without prefix")),
    "unigram": UNIGRAM,
}
CONTROLS = {name: [t["content"] for t in made["added_tokens"]] for name, made in DOCUMENTS.items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "model"


def write(folder: Path, document: Any = BYTE_LEVEL, **settings: Any) -> dict[str, bytes]:
    """The files of a folder of tokenizer.json and tokenizer_config.json."""
    files = {"tokenizer.json": document, "tokenizer_config.json": settings}
    return files_from_hf(spm.write_folder(folder, files))


def config(files: dict[str, bytes]) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(files["tokenizer_config.json"])
    return made


@pytest.mark.parametrize("name", DOCUMENTS)
def test_ids_and_text_are_the_librarys_on_every_hard_line(name: str, folder: Path) -> None:
    judge = tokenizers.Tokenizer.from_str(json.dumps(DOCUMENTS[name]))
    ours = Tokenizer.from_files(write(folder, DOCUMENTS[name]))
    assert len(spm.lines()) >= 1000
    judge.encode_special_tokens = True
    ids = [judge.encode(line, add_special_tokens=False).ids for line in spm.lines()]
    got = [ours.encode(line) for line in spm.lines()]
    assert [line for line, a, b in zip(spm.lines(), ids, got, strict=True) if a != b] == []
    # Broken UTF-8 aside, which the library shows as one U+FFFD a byte, decoding is the same.
    whole = [each for each in ids if "\ufffd" not in ours.decode(each)]
    assert [ours.decode(each) for each in whole] == [judge.decode(each) for each in whole]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_control_tokens_in_the_text_give_the_librarys_ids(name: str, folder: Path) -> None:
    judge = tokenizers.Tokenizer.from_str(json.dumps(DOCUMENTS[name]))
    ours = Tokenizer.from_files(write(folder, DOCUMENTS[name]))
    controls = CONTROLS[name]
    for i, line in enumerate(spm.lines()):
        control = controls[i % len(controls)]
        text = f"{control}{line}{control} {line[:20]}\n{control}"
        ids = judge.encode(text, add_special_tokens=False).ids
        assert ours.encode(text, special=True) == ids
        # The other way, taken when a message hides something, cuts the text up by itself.
        marked = text.replace("g", "\U00100000")  # no control token has this letter
        assert ours.encode(marked, special=True, hidden={0x100000: "g"}) == ids


@pytest.mark.parametrize("name", DOCUMENTS)
@settings(max_examples=50)
@given(data=st.data())
def test_streaming_any_ids_gives_the_text_of_all(
    name: str, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    ours = tokenizer(name, tmp_path_factory)
    ids = data.draw(st.lists(st.integers(0, ours.vocab_size - 1), max_size=30))
    stream = ours.stream()
    pieces = [stream.push(token) for token in ids]
    assert "".join(pieces) + stream.finish() == ours.decode(ids)


MADE: dict[str, Tokenizer] = {}


def tokenizer(name: str, factory: pytest.TempPathFactory) -> Tokenizer:
    if name not in MADE:
        MADE[name] = Tokenizer.from_files(write(factory.mktemp("hf") / "m", DOCUMENTS[name]))
    return MADE[name]


def test_a_folder_and_a_gguf_of_one_model_agree(folder: Path) -> None:
    ours = Tokenizer.from_files(write(folder, eos_token="<|im_end|>"))
    other = Tokenizer.from_files(files_from_gguf(GGUF))
    assert [ours.encode(line) for line in spm.lines()] == [other.encode(x) for x in spm.lines()]
    assert ours.eos_ids == other.eos_ids


def test_llama_2s_three_files_agree(folder: Path) -> None:
    files = {"tokenizer.model": spm.train("bpe"), "config.json": {}}
    model = Tokenizer.from_files(files_from_hf(spm.write_folder(folder / "a", files)))
    document = Tokenizer.from_files(write(folder / "b", DOCUMENTS["llama 2, legacy"]))
    keys = spm.metadata(spm.model("bpe"))
    gguf = Tokenizer.from_files(files_from_gguf(keys))
    texts = [line for line in spm.lines() if "<" not in line]
    wrong = [
        text
        for text in texts
        if not model.encode(text) == document.encode(text) == gguf.encode(text)
    ]
    assert len(texts) >= 800 and len(wrong) <= len(texts) // 100, wrong  # ties of equal scores


def test_normalisation_cannot_make_a_control_token(folder: Path) -> None:
    fold = {"type": "NFKC"}
    entry = spm.added(1, "<|im_start|>", special=True, normalized=True)
    added = [BYTE_LEVEL["added_tokens"][0], entry, BYTE_LEVEL["added_tokens"][2]]
    document = {**BYTE_LEVEL, "normalizer": fold, "added_tokens": added}
    ours = Tokenizer.from_files(write(folder, document))
    wide = "＜|im_start|>system <|im_start|>"
    assert ours.encode(wide, special=True).count(1) == 1


def test_flags_of_added_tokens_are_kept_and_overridden(folder: Path) -> None:
    added = [*BYTE_LEVEL["added_tokens"], spm.added(320, "<think>")]
    decoder = {
        "1": {"content": "<|im_start|>", "special": True, "rstrip": True},
        "321": {"content": "<tool>", "special": False, "lstrip": True},
    }
    files = write(folder, {**BYTE_LEVEL, "added_tokens": added}, added_tokens_decoder=decoder)
    ours = Tokenizer.from_files(files)
    a = ours.encode("a")
    assert ours.encode("<|im_start|>\n a", special=True) == [1, *a]
    assert ours.encode("a  <tool>a<think>a") == [*a, 321, *a, 320, *a]
    assert ours.decode([320, 321]) == "<think><tool>"


def test_tokens_that_the_model_does_not_know_are_left_out(folder: Path) -> None:
    added = [*BYTE_LEVEL["added_tokens"], spm.added(320, "<image>", special=True)]
    files = {
        "tokenizer.json": {**BYTE_LEVEL, "added_tokens": added},
        "tokenizer_config.json": {"added_tokens_decoder": {"320": {"content": "<image>"}}},
        "config.json": {"text_config": {"vocab_size": 320}},
    }
    ours = Tokenizer.from_files(files_from_hf(spm.write_folder(folder, files)))
    assert ours.vocab_size == 320
    assert ours.decode(ours.encode("<image>", special=True)) == "<image>"


def test_any_thread_may_use_it(folder: Path) -> None:
    ours = Tokenizer.from_files(write(folder, DOCUMENTS["llama 2"]))

    def work(i: int) -> list[list[int]]:
        special = bool(i % 2)
        return [ours.encode(f"<s>{x}\U00100000", special=special, hidden={0x100000: "<s>"})
                for x in spm.lines()[:100]]  # fmt: skip

    alone = [work(0), work(1)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(8))) == alone * 4


@pytest.mark.parametrize(
    ("settings", "processor", "add_bos"),
    [
        ({}, None, False),
        ({}, spm.template("<|im_start|>"), True),
        ({"add_bos_token": False}, spm.template("<|im_start|>"), True),
        ({"add_bos_token": True, "bos_token": "<|im_start|>"}, None, True),
        ({"add_bos_token": True, "bos_token": "<|im_start|>"}, LEVEL, False),
        ({"add_bos_token": True, "bos_token": None}, None, False),
        ({}, {"type": "Sequence", "processors": [spm.template("<|im_start|>")]}, True),
        ({}, LEVEL, False),
    ],
)
def test_whether_a_text_begins_with_bos(
    settings: dict[str, Any], processor: Any, add_bos: bool, folder: Path
) -> None:
    ours = Tokenizer.from_files(
        write(folder, {**BYTE_LEVEL, "post_processor": processor}, **settings)
    )
    a = ours.encode("a")
    assert ours.encode("a", add_bos=True) == ([1, *a] if add_bos else a)
    assert ours.encode("<|im_start|>a", special=True, add_bos=True) == [1, *a]


def test_ids_come_from_names_and_then_from_configs(folder: Path) -> None:
    spm.write_folder(
        folder,
        {
            "tokenizer.json": BYTE_LEVEL,
            "special_tokens_map.json": {"bos_token": {"content": "<|im_start|>"}},
            "config.json": {"bos_token_id": 0, "eos_token_id": 2},
            "generation_config.json": {"eos_token_id": [0, 2, 999999], "temperature": 0.6},
        },
    )
    made = config(files_from_hf(folder))
    assert (made["bos_id"], made["eos_id"], made["eos_ids"]) == (1, 0, [0, 2])


def test_what_ends_a_reply_is_never_in_a_users_text(folder: Path) -> None:
    document = {**BYTE_LEVEL, "added_tokens": [spm.added(2, "<|im_end|>")]}
    ours = Tokenizer.from_files(write(folder, document, eos_token="<|im_end|>"))
    assert ours.control_tokens == {"<|im_end|>": 2}
    assert 2 not in ours.encode("x<|im_end|>")
    assert ours.encode("x<|im_end|>", special=True)[-1] == 2


def test_settings_for_sampling_are_kept_if_they_are_numbers_in_range(folder: Path) -> None:
    generation = {
        "do_sample": False, "temperature": 0.6, "top_k": 20, "top_p": 1.5, "min_p": True,
        "repetition_penalty": "1.1", "max_length": 20, "eos_token_id": 2,
    }  # fmt: skip
    files = {"tokenizer.json": BYTE_LEVEL, "generation_config.json": generation}
    made = files_from_hf(spm.write_folder(folder, files))
    assert json.loads(made["generation_config.json"]) == {"temperature": 0.6, "top_k": 20}
    assert "generation_config.json" not in write(folder / "b")


NAMED = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"tokenizer_config.json": {"chat_template": "A"}}, "A"),
        ({"tokenizer_config.json": {"chat_template": NAMED}}, "D"),
        ({"tokenizer_config.json": {"chat_template": NAMED[:1]}}, "T"),
        ({"chat_template.json": {"chat_template": "J"}}, "J"),
        ({"chat_template.jinja": b"x\r\ny"}, "x\ny"),
        ({"chat_template.jinja": b"F", "tokenizer_config.json": {"chat_template": "A"}}, "F"),
        ({"additional_chat_templates/default.jinja": b"X"}, "X"),
    ],
)
def test_the_chat_template_in_any_of_its_places(
    files: dict[str, Any], expected: str | None, folder: Path
) -> None:
    made = files_from_hf(spm.write_folder(folder, {"tokenizer.json": BYTE_LEVEL, **files}))
    found = made.get("chat_template.jinja")
    assert (found.decode() if found else None) == expected


def test_gpt2s_two_files(folder: Path) -> None:
    files = {
        "vocab.json": BYTE_LEVEL["model"]["vocab"],
        "merges.txt": ("#version: 0.2\n" + "\n".join(BYTE_LEVEL["model"]["merges"])).encode(),
        "special_tokens_map.json": {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"},
        "tokenizer_config.json": {"add_bos_token": True},
    }
    ours = Tokenizer.from_files(files_from_hf(spm.write_folder(folder, files)))
    other = Tokenizer.from_files(files_from_gguf({**GGUF, "tokenizer.ggml.pre": "gpt-2"}))
    texts = [line for line in spm.lines() if "endoftext" not in line]
    assert [ours.encode(line) for line in texts] == [other.encode(line) for line in texts]
    assert ours.encode("a", add_bos=True)[0] == 1
    assert ours.eos_ids == {2}


def test_no_vocabulary_at_all(folder: Path) -> None:
    spm.write_folder(folder, {"config.json": {}, "vocab.json": {}})
    with pytest.raises(ModelNotFound, match=r"neither tokenizer\.json"):
        files_from_hf(folder)
