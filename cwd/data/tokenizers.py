"""Text to ids and back: raw bytes, a BPE trained here, the paper's own, or any Hugging Face or SentencePiece BPE file.

No tokenizer here adds a special token: the paper packs documents with nothing between them. Nothing heavy is imported
until a tokenizer that needs it is loaded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from cwd.data.bpe import BYTES, SMALLEST, train_backend
from cwd.data.sentencepiece import KNOWN, known_file, read_sentencepiece
from cwd.errors import UserError, nearest

TRAINED = tuple(SMALLEST)
ALLOWED = (
    f"allowed: bytes, {', '.join((*TRAINED, *KNOWN))}, the name of a Hugging Face tokenizer, a folder that holds a "
    "tokenizer.json, or a SentencePiece .model"
)


class Tokenizer(Protocol):
    """What the rest of the project knows of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """The ids of each text, an unsigned integer array of shape (length,)."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids."""

    def fingerprint(self) -> str:
        """A hash of what decides the ids: the same wherever the tokenizer was loaded from."""

    def save(self, folder: Path) -> None:
        """Write what `open_tokenizer` needs to load it again."""


class ByteTokenizer:
    """UTF-8 bytes: 256 ids; id 0, a byte that text does not hold, doubles as the first input of a row."""

    vocab_size = BYTES

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """An array of ids for each text."""
        return [np.frombuffer(text.encode("utf-8"), dtype=np.uint8) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids."""
        return bytes(int(i) for i in ids).decode("utf-8", errors="replace")  # a row may begin inside a character

    def fingerprint(self) -> str:
        """A hash of all that decides the ids."""
        return "bytes"

    def save(self, folder: Path) -> None:
        """Writes what loading needs into the folder."""


class JsonTokenizer:
    """A tokenizer that is wholly in its tokenizer.json: what is trained here, or a file from elsewhere."""

    def __init__(self, backend: Any) -> None:
        backend.no_truncation()  # a tokenizer.json may carry both, and either would alter the text's ids
        backend.no_padding()
        self.backend = backend

    @property
    def vocab_size(self) -> int:
        """How many ids there are."""
        return 1 + max(self.backend.get_vocab().values())

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """An array of ids for each text."""
        encodings = self.backend.encode_batch_fast(texts, add_special_tokens=False)  # no offsets: the same ids sooner
        return [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=False)

    def fingerprint(self) -> str:
        """A hash of all that decides the ids."""
        return _hash(self.backend.to_str())

    def save(self, folder: Path) -> None:
        """Writes what loading needs into the folder."""
        self.backend.save(str(folder / "tokenizer.json"))


class HuggingFaceTokenizer:
    """Whatever AutoTokenizer makes of a name or a folder."""

    def __init__(self, backend: Any) -> None:
        if backend.is_fast:  # as for JsonTokenizer; the other kind is told with each call
            backend.backend_tokenizer.no_truncation()
            backend.backend_tokenizer.no_padding()
        self.backend = backend

    @property
    def vocab_size(self) -> int:
        """How many ids there are."""
        return 1 + max(self.backend.get_vocab().values())

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """An array of ids for each text."""
        # verbose=False: a document longer than the tokenizer's own model could take is no problem here.
        encoded = self.backend(texts, add_special_tokens=False, truncation=False, padding=False, verbose=False)
        return [np.array(ids, dtype=np.uint32) for ids in encoded["input_ids"]]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=False)

    def fingerprint(self) -> str:
        """A hash of all that decides the ids."""
        if self.backend.is_fast:
            return _hash(self.backend.backend_tokenizer.to_str())
        return _hash(type(self.backend).__name__ + json.dumps(sorted(self.backend.get_vocab().items())))

    def save(self, folder: Path) -> None:
        """Writes what loading needs into the folder."""
        self.backend.save_pretrained(str(folder))


def load_tokenizer(
    spec: str,
    vocab_size: int | None,
    train_on: Iterable[str] | None = None,
    *,
    file: str | None = None,
    folder: Path = Path(),
) -> Tokenizer:
    """The tokenizer a config names.

    Args:
        spec: "bytes", one of TRAINED, one of KNOWN, the name of a Hugging Face tokenizer, or a path to one or to a
            SentencePiece BPE model (works offline).
        vocab_size: the size to train to; elsewhere None, or the size the tokenizer has anyway.
        train_on: for one of TRAINED, the texts to train on, read once.
        file, folder: for one of KNOWN, where its file is, as :func:`cwd.data.sentencepiece.known_file` takes them.

    Raises:
        UserError: the tokenizer cannot be loaded, or the vocabulary cannot have that size.
    """
    if spec in TRAINED:
        if vocab_size is None or vocab_size < SMALLEST[spec]:
            raise UserError(f"tokenizer {spec} needs a vocab_size of at least {SMALLEST[spec]}; got {vocab_size}")
        if train_on is None:
            raise ValueError(f"tokenizer {spec} is trained: it needs texts; use open_tokenizer for one that was saved")
        return JsonTokenizer(train_backend(spec, train_on, vocab_size))
    path = str(known_file(spec, file, folder)) if spec in KNOWN else spec
    tokenizer = ByteTokenizer() if spec == "bytes" else _load_hugging_face(path)
    if vocab_size not in (None, tokenizer.vocab_size):
        raise UserError(f"tokenizer {spec} has {tokenizer.vocab_size} ids, not {vocab_size}; set vocab_size to null")
    return tokenizer


def open_tokenizer(spec: str, folder: Path) -> Tokenizer:
    """A tokenizer from the folder that `save` wrote it to; `spec` only tells bytes, which saves nothing."""
    return ByteTokenizer() if spec == "bytes" else _load_hugging_face(str(folder))


def tokenizer_files(spec: str) -> list[Path]:
    """The local files a spec reads: when one of them changes, so may the ids. Empty for what is trained and for
    hub names.
    """
    path = Path(spec).expanduser().resolve()
    if spec in ("bytes", *TRAINED) or not path.exists():
        return []
    return [path] if path.is_file() else sorted(file for file in path.iterdir() if file.is_file())


def _load_hugging_face(spec: str) -> JsonTokenizer | HuggingFaceTokenizer:
    path = Path(spec).expanduser()
    try:
        if path.exists():
            return _load_path(path)
        if spec.startswith(("/", ".", "~")) or spec.endswith((".json", ".model")):  # no name on the hub looks like this
            raise FileNotFoundError("no such file or folder")
        return _load_name(spec)
    except Exception as error:  # the two libraries raise whatever their own dependencies raise
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        hint = nearest(spec, ["bytes", *TRAINED, *KNOWN])
        raise UserError(f"tokenizer {spec!r} cannot be loaded: {reason}{hint}; {ALLOWED}") from None


def _load_path(path: Path) -> JsonTokenizer | HuggingFaceTokenizer:
    if path.is_file():
        return JsonTokenizer(read_sentencepiece(path)) if path.suffix == ".model" else _load_json(path)
    if (path / "tokenizer_config.json").exists() or (path / "config.json").exists():
        from transformers import AutoTokenizer

        return HuggingFaceTokenizer(AutoTokenizer.from_pretrained(str(path), trust_remote_code=False))
    # Without a config AutoTokenizer cannot tell the class, but the file alone says all there is.
    if (path / "tokenizer.json").exists():
        return _load_json(path / "tokenizer.json")
    raise FileNotFoundError("the folder holds no tokenizer.json")


def _load_name(name: str) -> HuggingFaceTokenizer:
    from transformers import AutoTokenizer

    # The cache first: it does not change from one run to the next, and a node without network need not wait for
    # time-outs.
    try:
        return HuggingFaceTokenizer(AutoTokenizer.from_pretrained(name, trust_remote_code=False, local_files_only=True))
    except (OSError, ValueError):
        return HuggingFaceTokenizer(AutoTokenizer.from_pretrained(name, trust_remote_code=False))


def _load_json(path: Path) -> JsonTokenizer:
    from tokenizers import Tokenizer as Backend

    return JsonTokenizer(Backend.from_file(str(path)))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
