"""Small published corpora in their real formats, for the tests of their preparation."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from cwd.data.building import prepare_set
from cwd.data.published import Published
from cwd.data.sets import Request
from cwd.data.tokens import TokenData

C4 = Published("c4", "allenai/c4", "main", "en/c4-train.*.json.gz", "en/c4-validation.*.json.gz")
PILE = Published("pile", "monology/pile-uncopyrighted", "main", "train/[0-9][0-9].jsonl.zst", "val.jsonl.zst")
DOLMA = Published("dolma", "allenai/dolma", "main", "*.json.gz", urls="urls/v1_7.txt")
FINEWEB = Published("fineweb_edu", "HuggingFaceFW/fineweb-edu", "main", "sample/10BT/*.parquet")
CORPORA = {corpus.name: corpus for corpus in (C4, PILE, DOLMA, FINEWEB)}


def texts(name: str, count: int = 30) -> list[str]:
    """Documents that tell where they are from; every seventh is blank."""
    return [
        " \n" if i % 7 == 6 else f"{name} document {i}: " + "the cat sat. " * (i % 5) + "é漢🙂\n" * (i % 3)
        for i in range(count)
    ]


def gz(path: Path, records: Iterator[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def zst(path: Path, records: Iterator[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with pyarrow.CompressedOutputStream(pyarrow.OSFile(str(path), "wb"), "zstd") as file:
        for record in records:
            file.write((json.dumps(record, ensure_ascii=False) + "\n").encode())


def rows(path: Path, records: Iterator[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(list(records)), path, row_group_size=7)


def c4_record(text: str) -> dict[str, Any]:
    return {"text": text, "timestamp": "2019-04-25T12:57:54Z", "url": "https://example.com/"}


def pile_record(text: str) -> dict[str, Any]:
    return {"text": text, "meta": {"pile_set_name": "Pile-CC"}}


def dolma_record(text: str) -> dict[str, Any]:
    return {"id": "1", "text": text, "source": "wiki", "added": "2024-04-15", "metadata": {}}


def fineweb_record(text: str) -> dict[str, Any]:
    return {"text": text, "id": "<urn:uuid:1>", "dump": "CC-MAIN-2024-10", "score": 2.5, "token_count": 3}


FILES: dict[str, tuple[Callable[..., None], Callable[[str], dict[str, Any]], list[str], list[str]]] = {
    "c4": (
        gz,
        c4_record,
        [f"en/c4-train.{i:05}-of-01024.json.gz" for i in range(6)],
        [f"en/c4-validation.{i:05}-of-00008.json.gz" for i in range(2)],
    ),
    "pile": (zst, pile_record, ["train/00.jsonl.zst", "train/01.jsonl.zst"], ["val.jsonl.zst"]),
    "dolma": (gz, dolma_record, ["books/books-0000.json.gz", "wiki/wiki-0000.json.gz"], []),
    "fineweb_edu": (rows, fineweb_record, ["sample/10BT/000_00000.parquet", "sample/10BT/001_00000.parquet"], []),
}


def write_corpus(name: str, folder: Path, count: int = 30) -> tuple[list[str], list[str]]:
    """Writes its files. Returns the documents of its training and of its validation files, in order."""
    write, record, train, validation = FILES[name]
    for file in (*train, *validation):
        write(folder / file, (record(text) for text in texts(file, count)))
    return [t for file in train for t in texts(file, count)], [t for file in validation for t in texts(file, count)]


def request_for(corpus: Published, root: Path, **options: Any) -> Request:
    usual: dict[str, Any] = {"tokenizer": "bytes", "vocab_size": None, "validation_fraction": 0.2}
    return Request(corpus, root=root, **usual | options)


def prepared(request: Request, source: Path, says: list[str] | None = None, processes: int = 1) -> TokenData:
    return prepare_set(
        request,
        source=str(source),
        processes=processes,
        say=(says if says is not None else []).append,
        show=lambda done, total: None,
        save_seconds=0,
    )


def content(folder: Path) -> dict[str, bytes]:
    """Every byte below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
