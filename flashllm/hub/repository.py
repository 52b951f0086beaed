"""What a repository of the hub holds, and which of its files make the model that was asked for."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from flashllm.errors import CorruptModel, InvalidInput, ModelNotFound
from flashllm.formats.hf import CONFIG, INDEX, SINGLE
from flashllm.formats.refused import refusal_of_folder

DTYPES = ("keep", "f32", "f16", "bf16", "q8", "q4m", "q4")
"""What a quant means for a safetensors repository: convert.DTYPES."""

PREFERRED = (
    "Q4_K_M", "Q4_K_S", "Q4_0", "Q4_1", "IQ4_NL", "IQ4_XS", "MXFP4", "Q5_K_M", "Q5_K_S", "Q5_0",
    "Q5_1", "Q6_K", "Q8_0", "Q3_K_M", "Q3_K_L", "Q3_K_S", "Q2_K", "BF16", "F16", "F32",
)  # fmt: skip
"""Which file of a GGUF repository is taken when none is asked for: the first of these it has."""

SIDE_FILES = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
"""What a model needs beside its config and weights; whichever of these there are."""

MAX_SIDE_BYTES = 256 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)
_LABEL = re.compile(
    r"(?<![A-Za-z0-9])((?:UD-)?(?:I?Q\d\w*|TQ\d_\d|MXFP4\w*|BF16|F16|FP16|F32))(?![A-Za-z0-9])",
    re.IGNORECASE,
)
_NOT_A_MODEL = re.compile(r"(?:^|[-_./])(?:mmproj|imatrix|draft)(?:[-_.]|$)", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class RepoFile:
    """A file of a repository: its path there, its bytes, and what the hub tells of its content.

    blob: the name the hub keeps the content under.
    """

    name: str
    nbytes: int
    sha256: str | None = None
    blob: str | None = None

    def __post_init__(self) -> None:
        check_name(self.name)
        if type(self.nbytes) is not int or self.nbytes < 0:
            raise CorruptModel(f"the hub says that {self.name} has {self.nbytes!r} bytes")
        if self.sha256 is not None and not _SHA256.fullmatch(self.sha256):
            raise CorruptModel(f"the hub gives {self.name} the SHA-256 {self.sha256!r:.80}")


@dataclasses.dataclass(frozen=True)
class Repository:
    """A repository at one commit. `files` are by name; those with unusable names are left out."""

    repo: str
    commit: str
    files: Mapping[str, RepoFile]
    licence: str | None = None

    def get(self, name: str) -> RepoFile:
        """The file called `name`. Raises CorruptModel: whoever asks was told it is there."""
        if name not in self.files:
            raise CorruptModel(f"{self.repo}: {name} is missing from the repository")
        return self.files[name]


@dataclasses.dataclass(frozen=True)
class Choice:
    """The files that make a model.

    source: what to open once they are in a folder: a file in it, or "." for all of it. dtype: what
    to convert the weights to. label: what distinguishes it from the repository's other models.
    """

    files: tuple[RepoFile, ...]
    source: str
    dtype: str
    label: str | None

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        return sum(file.nbytes for file in self.files)


def check_name(name: str) -> None:
    """Raise CorruptModel unless `name` is a relative path that stays inside its folder."""
    path = PurePosixPath(name)
    parts = name.split("/")
    if (
        not name
        or not name.isprintable()
        or path.is_absolute()
        or any(part in ("", ".", "..") or part.endswith((" ", ".")) for part in parts)
        or any(character in name for character in '\\:*?"<>|')
        or len(name) > 400
    ):
        raise CorruptModel(f"the hub names a file {name[:100]!r}, which is not used")


def gguf_choices(repository: Repository) -> dict[str, tuple[RepoFile, ...]]:
    """The GGUF models of a repository: the parts of each, in order, by the first part's name.

    Raises CorruptModel if a part of a split model is missing.
    """
    found: dict[str, tuple[RepoFile, ...]] = {}
    for name, file in sorted(repository.files.items()):
        if not name.lower().endswith(".gguf") or _NOT_A_MODEL.search(name):
            continue
        part = _PART.fullmatch(name)
        if part is None:
            found[name] = (file,)
        elif int(part["number"]) == 1:
            count, suffix = int(part["count"]), name[-5:]
            names = [f"{part['stem']}-{i:05}-of-{count:05}{suffix}" for i in range(1, count + 1)]
            found[name] = tuple(repository.get(other) for other in names)
    return found


def choose_gguf(repository: Repository, quant: str | None) -> Choice:
    """The GGUF model that `quant` means: part of a file's name, or all of it, letter case aside.

    Without one, the first of PREFERRED. Raises ModelNotFound, listing what there is.
    """
    choices = gguf_choices(repository)
    if not choices:
        raise refusal_of_folder(Path(repository.repo), frozenset(repository.files))
    wanted = [quant] if quant else [kind for kind in PREFERRED if _matching(choices, kind)][:1]
    names = _matching(choices, wanted[0]) if wanted else list(choices)
    if not names:
        raise ModelNotFound(f"{repository.repo} has no {quant!r}; it has {_labels(choices)}")
    if len(names) > 1:
        raise ModelNotFound(
            f"{repository.repo} has several such files; name one, as {repository.repo}:FILE: "
            f"{', '.join(names[:12])}"
        )
    label = wanted[0] if wanted else PurePosixPath(names[0]).stem
    return Choice(choices[names[0]], names[0], "keep", label)


def choose_safetensors(
    repository: Repository, weight_map: Mapping[str, str] | None, quant: str | None
) -> Choice:
    """config.json, the weights, and what belongs to the tokeniser; never anything else.

    weight_map: the index's, if the weights are in shards. quant: the dtype to convert to, or None
    to keep the weights as they are. Raises InvalidInput, ModelNotFound or CorruptModel.
    """
    dtype = (quant or "keep").lower()
    if dtype not in DTYPES:
        raise InvalidInput(
            f"{repository.repo} holds safetensors, to be converted to one of {', '.join(DTYPES)}, "
            f"not {quant!r}"
        )
    names = [SINGLE] if weight_map is None else [INDEX, *sorted(set(weight_map.values()))]
    names += [name for name in SIDE_FILES if name in repository.files]
    files = tuple(repository.get(name) for name in [CONFIG, *names])
    for file in files:
        if not file.name.endswith(".safetensors") and file.nbytes > MAX_SIDE_BYTES:
            raise CorruptModel(f"{repository.repo}: {file.name} has {file.nbytes} bytes")
    return Choice(files, ".", dtype, None if dtype == "keep" else dtype)


def wants_gguf(repository: Repository, quant: str | None) -> bool:
    """Whether the GGUF files are meant: there is nothing else, or `quant` is one of theirs."""
    has_safetensors = CONFIG in repository.files and (
        SINGLE in repository.files or INDEX in repository.files
    )
    if not has_safetensors or quant is None:
        return not has_safetensors
    return quant.lower() not in DTYPES and bool(_matching(gguf_choices(repository), quant))


def _matching(choices: Mapping[str, tuple[RepoFile, ...]], quant: str) -> list[str]:
    """The names that are `quant`, or carry it as a word."""
    lower = quant.lower()
    exact = [name for name in choices if lower in (name.lower(), PurePosixPath(name).name.lower())]
    word = re.compile(rf"(?<![A-Za-z0-9]){re.escape(quant)}(?![A-Za-z0-9_])", re.IGNORECASE)
    plain = [name for name in choices if word.search(PurePosixPath(name).name)]
    # UD-Q4_K_M is another recipe than Q4_K_M: only where there is no plain one does it answer.
    plain = [name for name in plain if f"ud-{lower}" not in name.lower()] or plain
    return exact or plain or [name for name in choices if word.search(name)]


def _labels(choices: Mapping[str, Sequence[RepoFile]]) -> str:
    """What can be asked for."""
    labels: dict[str, None] = {}
    for name in choices:
        found = _LABEL.findall(name)
        labels[found[-1] if found else PurePosixPath(name).name] = None
    return ", ".join(labels)
