"""Files of text as UTF-8: compression is undone, byte order marks are read, odd bytes are refused.

| file | read as |
|---|---|
| gzip or Zstandard, by its first bytes | its content |
| UTF-8, with or without a byte order mark | UTF-8 |
| UTF-16 or UTF-32 with a byte order mark | that encoding |
| anything else | refused, with the line: Latin-1 and its relatives cannot be told apart |
"""

from __future__ import annotations

import codecs
import contextlib
import dataclasses
import gzip
import io
import os
import zlib
from collections.abc import Iterator
from typing import IO

import pyarrow as pa

from sigma_jax.data import database

BLOCK_BYTES = 1 << 24
_PADDING = 16  # zero bytes at the end of a gzip file that tell that it is padded
# The first bytes of files that are no text, and the remedy.
_OTHER_KINDS = {
    b"PK\x03\x04": "it is a ZIP archive or a spreadsheet; unpack it, or export it as UTF-8 CSV",
    b"PAR1": "it is Parquet; give it the suffix .parquet",
    b"ARROW1": "it is an Arrow file; save it as Parquet",
    b"BZh": "it is compressed by bzip2; use .gz or .zst",
    b"\xfd7zXZ": "it is compressed by xz; use .gz or .zst",
    b"version https://git-lfs": "it is a pointer of Git LFS; get the file by `git lfs pull`",
}
_COMPRESSIONS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}  # first bytes -> name
# UTF-32 comes first: its mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)


@dataclasses.dataclass(frozen=True)
class TextFile:
    """A file of text, and how it is stored."""

    path: str
    compression: str | None  # "gzip", "zstd" or None; the words of DuckDB and of Arrow
    encoding: str  # a codec of Python: utf-8, utf-8-sig, utf-16 or utf-32
    is_padded: bool = False  # zero bytes follow the gzip, which DuckDB and Arrow refuse

    @property
    def is_utf8(self) -> bool:
        """Whether the content is UTF-8 without a byte order mark, and others can unpack it."""
        return self.encoding == "utf-8" and not self.is_padded

    def blocks(self) -> Iterator[bytes]:
        """The text as UTF-8 without a byte order mark, in pieces.

        Raises:
          ValueError: a byte is no text of the encoding, or is NUL. The message names the line.
        """
        decoder = codecs.getincrementaldecoder(self.encoding)()
        line = 1
        with _opened(self) as file:
            while True:
                raw = file.read(BLOCK_BYTES)
                try:
                    text = decoder.decode(raw, final=not raw)
                except UnicodeDecodeError as error:
                    before = error.object[: error.start].count(b"\n")
                    raise ValueError(self._not_text(line + before, error)) from error
                if "\0" in text:
                    place = text.index("\0")
                    line += text[:place].count("\n")
                    remedy = "save the file as UTF-8, without NUL bytes"
                    if not text[place:].strip("\0"):
                        remedy = "the file was not written to its end: save it again"
                    raise ValueError(f"{self.path}: line {line} holds a NUL byte; {remedy}.")
                line += text.count("\n")
                if text:
                    yield text.encode()
                if not raw:
                    return

    def lines(self) -> Iterator[str]:
        r"""The lines of the text with their ends: \n, \r\n or \r. Errors as of `blocks`."""
        decoder = codecs.getincrementaldecoder("utf-8")()
        rest = ""
        for block in self.blocks():
            rest += decoder.decode(block)
            # A \r at the end may be the first half of \r\n.
            kept = rest[-1:] if rest.endswith("\r") else ""
            complete = io.StringIO(rest[: len(rest) - len(kept)], newline="")
            *whole, rest = complete.readlines() or [""]
            yield from whole
            if rest.endswith(("\n", "\r")):
                yield rest
                rest = ""
            rest += kept
        if rest:
            yield rest

    def _not_text(self, line: int, error: UnicodeDecodeError) -> str:
        found = error.object[error.start : error.start + 1].hex()
        return (
            f"{self.path} cannot be read (line {line}: byte 0x{found} is not {self.encoding}); "
            "save it as UTF-8."
        )


def open_text(path: str) -> TextFile:
    """The file at `path` with its compression and encoding.

    Raises:
      ValueError: it is empty, cannot be opened, or is UTF-16 without a byte order mark.
    """
    plain = TextFile(path, None, "utf-8")
    with _opened(plain) as file:
        head = file.read(4)
    found = (name for mark, name in _COMPRESSIONS.items() if head.startswith(mark))
    compression = next(found, None)
    is_padded = compression == "gzip" and _is_padded(path)
    with _opened(TextFile(path, compression, "utf-8", is_padded)) as file:
        head = file.read(1024)
    check_kind(path, head)
    if not head:
        raise ValueError(f"{path} has no rows: it is empty; add rows, or remove the file.")
    encoding = next((name for mark, name in _MARKS if head.startswith(mark)), "utf-8")
    content = head.rstrip(b"\0")  # zero bytes at the end are named with their line
    if encoding in ("utf-8", "utf-8-sig") and content.count(0) > len(content) // 8:
        raise ValueError(
            f"{path} cannot be read (half of its bytes are NUL, as in UTF-16 without a byte order "
            "mark); save it as UTF-8."
        )
    return TextFile(path, compression, encoding, is_padded)


def check_kind(path: str, head: bytes) -> None:
    """ValueError if the first bytes of a file tell that it is no text."""
    for mark, remedy in _OTHER_KINDS.items():
        if head.startswith(mark):
            raise ValueError(f"{path} cannot be read: {remedy}.")


def _is_padded(path: str) -> bool:
    """Whether a gzip file ends with zero bytes; they are looked for on this machine only."""
    if database.is_url(path):
        return False
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _PADDING))
        return not file.read().strip(b"\0")


@contextlib.contextmanager
def _opened(file: TextFile) -> Iterator[IO[bytes]]:
    """The decompressed bytes of a file or URL. ValueError if it cannot be read, or is cut off."""
    try:
        if database.is_url(file.path):
            import fsspec

            source = fsspec.open(file.path, "rb").open()
        else:
            source = open(file.path, "rb")
        with source:
            if not file.compression:
                yield source
            elif file.is_padded:  # Python skips the padding
                with gzip.GzipFile(fileobj=source) as content:
                    yield content
            else:
                with pa.CompressedInputStream(
                    pa.PythonFile(source, mode="r"), file.compression
                ) as content:
                    yield content
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(
            f"{file.path} cannot be read ({database.first_line(error)}); save it again, complete."
        ) from error
