"""Small corpora for the tests of data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from cwd.data.corpora import Document, TextFiles
from cwd.data.prepare import prepare
from cwd.data.tokens import TokenData
from cwd.errors import UserError

REPOSITORY = Path(__file__).parent.parent
TEXTS = [f"Document {i}: " + "the cat sat on the mat. " * (3 + i % 7) + "é 漢字 🙂\n" * (i % 3) for i in range(40)]
unicode_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


class Memory:
    """A corpus that is not in files."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts

    def files(self) -> list[Path]:
        return []

    def documents(self) -> Iterator[Document]:
        return (Document(str(i), text) for i, text in enumerate(self.texts))

    def spec(self) -> dict[str, Any]:
        return {"kind": "memory"}


def ready_from(corpus: Any, root: Path, **options: Any) -> TokenData:
    defaults: dict[str, Any] = {"tokenizer": "bytes", "vocab_size": None, "validation_fraction": 0.1}
    return prepare(corpus, root=root, **{"progress": lambda line: None} | defaults | options)


def ready(files: Path | str, root: Path, says: list[str] | None = None, **options: Any) -> TokenData:
    return ready_from(TextFiles([str(files)]), root, progress=(says if says is not None else []).append, **options)


def refused(files: list[str], **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        list(TextFiles(files, **options).documents())
    assert "\n" not in str(caught.value)
    return str(caught.value)
