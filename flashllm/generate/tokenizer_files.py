"""A flash model's tokeniser files, from either kind of checkpoint."""

from flashllm.generate.tokenizer_gguf import files_from_gguf
from flashllm.generate.tokenizer_hf import files_from_hf

__all__ = ["files_from_gguf", "files_from_hf"]
