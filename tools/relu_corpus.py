"""English text from Debian's documentation packages, for train_relu.py: one file of plain text.

    python tools/relu_corpus.py TEXT        about 50 MB; needs apt-get and dpkg-deb, no root

Packages come through apt, whatever it is set up to use. Pages are stripped of their markup, and
paragraphs that are no prose (tables, code, indices) are left out.
"""

from __future__ import annotations

import argparse
import gzip
import html
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

PACKAGES = (
    "anarchism",
    "dict-gcide",
    "dict-foldoc",
    "dict-jargon",
    "debian-reference-en",
    "debian-policy",
    "debian-faq",
    "developers-reference",
    "harden-doc",
    "perl-doc",
    "git-doc",
    "apache2-doc",
    "manpages",
    "manpages-dev",
    "fortunes",
)
"""What is written as prose, or nearly; all of Debian's main archive."""

FEWEST_LETTERS = 80
"""Letters of a paragraph that is kept."""

LEAST_PROSE = 0.9
"""The share of letters and spaces in a paragraph that is kept."""

_MARKUP = re.compile(r"<(script|style)\b.*?</\1>|<!--.*?-->", re.S | re.I)
_BREAKS = re.compile(r"</?(p|div|li|h\d|td|tr|dd|dt|pre|br|blockquote)\b[^>]*>", re.I)
_TAG = re.compile(r"<[^>]+>")
_POD = re.compile(r"[A-Z]<+\s?([^<>]*?)\s?>+")
_ROFF = re.compile(r"^[.'].*$|\\f[BIRP]|\\[&|]", re.M)
_SPACE = re.compile(r"\s+")
_SUFFIXES = {".html", ".htm", ".txt", ".pod", ".dict", ".en", ".7", ".2", ".3", ".5", ".8", ""}


def main() -> None:
    """Write the text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", type=Path)
    options = parser.parse_args()
    seen: set[str] = set()
    total = 0
    with (
        options.target.open("w", encoding="utf-8") as out,
        tempfile.TemporaryDirectory() as scratch,
    ):
        for package in PACKAGES:
            kept = 0
            for document in documents(package, Path(scratch)):
                fresh = [text for text in paragraphs(document) if text not in seen]
                seen.update(fresh)
                if fresh:
                    out.write("\n\n".join(fresh) + "\n\n")
                    kept += sum(map(len, fresh))
            total += kept
            print(f"{package}: {kept / 1e6:.1f} MB", file=sys.stderr, flush=True)
    print(f"{options.target}: {total / 1e6:.1f} MB")


def documents(package: str, scratch: Path) -> Iterator[str]:
    """The text of each of a package's documents, in the order of their paths."""
    folder = scratch / package
    folder.mkdir()
    subprocess.run(["apt-get", "download", package], cwd=folder, check=True, capture_output=True)
    archive = next(folder.glob("*.deb"))
    subprocess.run(["dpkg-deb", "-x", archive.name, "files"], cwd=folder, check=True)
    for path in sorted((folder / "files").rglob("*")):
        if not path.is_file() or path.is_symlink():
            continue
        data = path.read_bytes()
        name = path
        if path.suffix in (".gz", ".dz"):
            data, name = gzip.decompress(data), path.with_suffix("")
        if name.suffix.lower() in _SUFFIXES and b"\0" not in data[:4096]:
            yield readable(data.decode("utf-8", errors="replace"), name.suffix.lower())


def readable(text: str, suffix: str) -> str:
    """A document without its markup."""
    if suffix in (".html", ".htm"):
        text = _TAG.sub("", _BREAKS.sub("\n\n", _MARKUP.sub("", text)))
        return html.unescape(text)
    if suffix == ".pod":
        return _POD.sub(r"\1", text)
    if suffix[1:].isdigit():
        return _ROFF.sub("", text)
    return text


def paragraphs(text: str) -> Iterator[str]:
    """What of a text is prose, paragraph by paragraph."""
    for block in re.split(r"\n\s*\n|\n%\n", text):
        line = _SPACE.sub(" ", block).strip()
        letters = sum(c.isalpha() for c in line)
        spaces = line.count(" ")
        if letters >= FEWEST_LETTERS and letters + spaces >= LEAST_PROSE * len(line):
            yield line


if __name__ == "__main__":
    main()
