"""Offline work on checkpoints: convert one to the flash format, verify the result."""

from __future__ import annotations

from flashllm.convert.conversion import convert
from flashllm.convert.verification import VerifyReport, verify

__all__ = ["VerifyReport", "convert", "verify"]
