"""What is closed when a `with` statement ends."""

from __future__ import annotations

import abc
from typing import Self


class Closing(abc.ABC):
    """Has a `close`, which `with` calls."""

    @abc.abstractmethod
    def close(self) -> None:
        """Give back what it holds; more calls do nothing more."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
