"""Reading text out of files as they are published: .jsonl, gzipped or zstandard JSON lines, parquet.

Whatever is not as the name promises is one line that names the file and the line; nothing is guessed or replaced.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from cwd.errors import UserError, nearest

SUFFIXES = (".json.gz", ".jsonl.gz", ".json.zst", ".jsonl.zst", ".jsonl", ".parquet")
ROWS = 1024  # of a parquet file, decoded at a time


class Records:
    """The text of each record of one file, in its order, streamed.

    Args:
        path: a file with one of SUFFIXES. field: the key, or the column, that holds the text.
        start: how many records to leave out; they are read past without being parsed.

    Raises:
        UserError: while reading, anything that is not as the suffix promises, with the file and the line.
    """

    def __init__(self, path: Path, field: str, start: int = 0) -> None:
        self.path, self.field, self.start = path, field, start
        self.position = 0  # how many of the file's bytes have been read; only as exact as buffers allow

    def __iter__(self) -> Iterator[str]:
        if not self.path.name.endswith(SUFFIXES):
            raise UserError(f"{self.path} is none of the allowed kinds: {', '.join(SUFFIXES)}")
        if self.path.exists() and not self.path.stat().st_size:
            raise UserError(f"{self.path} is empty: not even a compressed file of no lines is")
        yield from self._rows() if self.path.name.endswith(".parquet") else self._lines()

    def _lines(self) -> Iterator[str]:
        with _open(self.path) as raw:
            for number, line in enumerate(_numbered(self.path, decompressed(self.path, raw)), 1):
                if number > self.start:
                    self.position = self.position if raw.closed else raw.tell()  # pyarrow closes what it has read
                    where = f"{self.path}, line {number}"
                    yield text_of(decode(line, self.path, where=f"line {number}, "), self.field, where)
        self.position = self.path.stat().st_size

    def _rows(self) -> Iterator[str]:
        import pyarrow
        from pyarrow import parquet

        try:
            with parquet.ParquetFile(self.path) as file:
                if self.field not in file.schema_arrow.names:
                    raise UserError(f"{self.path} lacks the column {self.field!r}{_has(self.field, file)}")
                yield from self._columns(file)
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(f"{self.path} cannot be read as parquet: {' '.join(str(error).split())}") from None

    def _columns(self, file: Any) -> Iterator[str]:
        first, size, total = 0, self.path.stat().st_size, file.metadata.num_rows
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if first + rows > self.start:
                number = first
                for batch in file.iter_batches(ROWS, row_groups=[group], columns=[self.field]):
                    for value in batch.column(0):
                        number += 1
                        self.position = size * number // total
                        if number > self.start:
                            yield _checked(value.as_py(), self.field, f"{self.path}, row {number}", "each row must be")
            first += rows


def raw_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The numbered lines of a file of JSON lines, decompressed and undecoded, one at a time."""
    with _open(path) as raw:
        yield from enumerate(_numbered(path, decompressed(path, raw)), 1)


def decompressed(path: Path, raw: BinaryIO) -> BinaryIO:
    """The content of an open file, as its name says that it is compressed."""
    if path.name.endswith(".gz"):
        return gzip.GzipFile(fileobj=raw)  # type: ignore[return-value]
    if path.name.endswith(".zst"):
        import pyarrow

        return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, "r"), "zstd"), 2**20)
    return raw


def decode(raw: bytes, path: Path, offset: int = 0, where: str = "") -> str:
    """Strict UTF-8 with line ends as they are: a replaced byte would change the data without a word."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        at = offset + error.start
        raise UserError(f"{path}: {where}byte {at} is not UTF-8 ({error.reason}); text must be UTF-8") from None


def text_of(line: str, field: str, where: str) -> str:
    """The text that a line of JSON holds in a field."""
    allowed = f"each line must be a JSON object whose field {field!r} is a string"
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON ({error}); {allowed}") from None
    if not isinstance(entry, dict):
        raise UserError(f"{where} is not a JSON object; {allowed}")
    if field not in entry:
        hint = nearest(field, entry) or f" (it has: {', '.join(map(repr, sorted(entry))) or 'no field'})"
        raise UserError(f"{where} lacks the field {field!r}{hint}; {allowed}, or set dataset.field")
    return _checked(entry[field], field, where, "each line must be a JSON object whose")


def _checked(text: Any, field: str, where: str, must: str) -> str:
    allowed = f"{must} field {field!r} is a string" if "JSON" in must else f"{must} a string"
    if not isinstance(text, str):
        raise UserError(f"{where}: the field {field!r} is {json.dumps(text, default=str)[:40]}; {allowed}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # JSON can spell what UTF-8 cannot
        raise UserError(f"{where}: the field {field!r} holds half of a surrogate pair; {allowed}") from None
    return text


def _open(path: Path) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def _numbered(path: Path, lines: BinaryIO) -> Iterator[bytes]:
    """The lines, with one line of words for whatever decompression raises."""
    number = 0
    try:
        for line in lines:
            yield line
            number += 1
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read after line {number}: {error}") from None


def _has(field: str, file: Any) -> str:
    names = list(file.schema_arrow.names)
    return nearest(field, names) or f" (it has: {', '.join(map(repr, names))})"
