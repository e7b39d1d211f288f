"""A prepared set of a published corpus: what is asked for, where it lies, and whether what lies there is that."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cwd.data.published import Published
from cwd.data.sentencepiece import KNOWN
from cwd.data.tokenizers import TRAINED, tokenizer_files
from cwd.data.tokens import FORMAT, TokenData, hash_of, open_folder
from cwd.errors import UserError
from cwd.files import read_json, sha256_of


@dataclass(frozen=True)
class Request:
    """A corpus, and how it becomes tokens.

    Args:
        tokenizer, vocab_size, tokenizer_file: as :func:`cwd.data.tokenizers.load_tokenizer` takes them.
        validation_fraction: the share of documents to hold out of a corpus that has no validation files.
        root: where prepared sets live. place: this one's own folder instead of one below `root`.
    """

    corpus: Published
    tokenizer: str
    vocab_size: int | None
    validation_fraction: float
    root: Path
    tokenizer_file: str | None = None
    place: str | None = None

    @cached_property
    def content(self) -> dict[str, Any]:
        """What decides the tokens, as far as it is known before the text is seen: JSON-able, no machine paths."""
        return {
            **self.corpus.spec(),
            "tokenizer": _identity(self.tokenizer),
            "vocab_size": self.vocab_size if self.tokenizer in TRAINED else None,
            "validation_fraction": self.held_out,
        }

    @property
    def held_out(self) -> float:
        """The share of documents to hold out: none where validation has files of its own."""
        return 0.0 if self.corpus.validation else self.validation_fraction

    @cached_property
    def key(self) -> str:
        """The hash of `content`."""
        return hash_of([FORMAT, self.content])[:16]

    @property
    def folder(self) -> Path:
        """Where the set is or will be."""
        if self.place:
            return Path(self.place).expanduser().absolute()
        return Path(self.root).expanduser().absolute() / f"{self.corpus.name}-{self.key}"


def open_set(request: Request) -> tuple[TokenData | None, str]:
    """The set if it is there and whole, or what is wrong with it (nothing, when it is not there).

    Raises:
        UserError: the folder holds another set.
    """
    manifest = read_json(request.folder / "manifest.json")
    found = manifest.get("request") if isinstance(manifest, dict) else None
    if isinstance(found, dict) and found != request.content:
        name = next(name for name in {**request.content, **found} if request.content.get(name) != found.get(name))
        raise UserError(
            f"{request.folder} holds another set: its {name} is {found.get(name)}, and the configuration's "
            f"{request.content.get(name)}; set dataset.{name}, or another dataset.folder"
        )
    return open_folder(request.folder, request.key)


def find_set(request: Request, command: str) -> TokenData:
    """The set, which must have been prepared.

    Args:
        command: what prepares it, for the message.

    Raises:
        UserError: it is not there, or not whole any more.
    """
    data, damage = open_set(request)
    if damage:
        raise UserError(f"{damage}; this makes it whole again: {command}")
    if data is None:
        raise UserError(
            f"{request.corpus.name} is not prepared ({request.folder} is not there); this prepares it: {command}"
        )
    return data


def _identity(tokenizer: str) -> str:
    """What tells a tokenizer: the content of a file, or its name."""
    if tokenizer in KNOWN:
        return KNOWN[tokenizer].sha256
    files = tokenizer_files(tokenizer)
    if len(files) == 1:
        return sha256_of(files[0])
    return hash_of([[file.name, sha256_of(file)] for file in files]) if files else tokenizer
