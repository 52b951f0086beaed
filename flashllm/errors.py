"""Every error flashllm raises on purpose.

FlashError                 exit code 1
├── InvalidInput           2   a bad flag, argument, prompt or request
├── ModelNotFound          3   no such model, file or directory
├── CorruptModel           4   a file that lies, is truncated or fails its checksum
├── UnsupportedModel       5   a valid file that flashllm cannot run
├── OutOfBudget            6   does not fit the memory allowed
├── ModelIOError           7   reading or writing failed
│   └── DiskFull           7
├── DownloadError          8   a model could not be fetched
├── ContextFull            9   the conversation no longer fits the context
├── EngineError           10   arithmetic stopped making sense (NaN), or the engine is closed
└── Cancelled            130   the caller asked to stop

A message says what is wrong, where, and what to do. The command line prints it on one line and
exits with the code above.
"""

from __future__ import annotations

from pathlib import Path


class FlashError(Exception):
    """Root of the tree: catch this to catch everything flashllm raises on purpose."""

    exit_code = 1


class InvalidInput(FlashError):
    """A bad flag, argument, prompt or request."""

    exit_code = 2


class ModelNotFound(FlashError):
    """No model, file or directory of that name."""

    exit_code = 3


class CorruptModel(FlashError):
    """A file that contradicts itself, is truncated, or fails its checksum."""

    exit_code = 4


class UnsupportedModel(FlashError):
    """A valid file whose architecture, tensor type or version flashllm cannot run."""

    exit_code = 5


class OutOfBudget(FlashError):
    """The model does not fit the memory it may use."""

    exit_code = 6


class ModelIOError(FlashError):
    """Reading or writing a model failed.

    path: the file concerned; offset: the byte offset of the failed read or write, if known.
    """

    exit_code = 7

    def __init__(self, message: str, path: Path | None = None, offset: int | None = None):
        super().__init__(message)
        self.path = path
        self.offset = offset


class DiskFull(ModelIOError):
    """The disk has no room for what was being written."""


class DownloadError(FlashError):
    """A model could not be fetched."""

    exit_code = 8


class ContextFull(FlashError):
    """The conversation no longer fits the context."""

    exit_code = 9


class EngineError(FlashError):
    """The engine met non-finite numbers, or was used after it was closed."""

    exit_code = 10


class Cancelled(FlashError):
    """The caller asked to stop."""

    exit_code = 130
