"""Bytes on disk: the flash format, its codecs, and explicit reads and writes of it."""
