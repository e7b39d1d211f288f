"""SentencePiece BPE models, the paper's own among them, read into a Hugging Face tokenizer that gives the same ids.

SentencePiece merges the neighbours whose joined piece has the best score, the leftmost of equals. A rank for each way
to cut a piece in two says the same in terms of merges.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cwd.errors import UserError
from cwd.files import sha256_of

SPACE = "\u2581"  # what stands for a space inside a piece
BPE_MODEL = 2  # of trainer_spec.model_type
NORMAL, UNKNOWN, USER_DEFINED = 1, 2, 4  # of a piece's type


@dataclass(frozen=True)
class KnownFile:
    """A tokenizer file that is named by its content."""

    sha256: str
    size: int  # bytes
    where: str


# The tokenizer of the paper's C4 models, from the public history of the code that they were trained with (Apache-2.0).
KNOWN = {
    "vb100864_openmix_v1": KnownFile(
        sha256="23152c52b14c7e35aa6c2ee042de858b9cae608ff50c42493950df8807878276",
        size=2_163_866,
        where="github.com/google-deepmind/simply at commit dd7018f, vocabs/vb100864_openmix_v1.model",
    )
}


def known_file(name: str, file: str | None, folder: Path) -> Path:
    """The file of a tokenizer in KNOWN, checked.

    Args:
        file: where it is; None: `folder`/`name`.model.

    Raises:
        UserError: it is not there, or it is another file.
    """
    known, path = KNOWN[name], Path(file).expanduser() if file else folder / f"{name}.model"
    if not path.is_file():
        raise UserError(
            f"tokenizer {name}: {path} is not there; fetch it from {known.where}, and name its place in "
            "dataset.tokenizer_file, or train one: dataset.tokenizer=bpe_fallback dataset.vocab_size=100864"
        )
    if path.stat().st_size != known.size or sha256_of(path) != known.sha256:
        raise UserError(
            f"tokenizer {name}: {path} is another file (its sha256 is not {known.sha256}); see {known.where}"
        )
    return path


def read_sentencepiece(path: Path) -> Any:
    """The `tokenizers.Tokenizer` of a SentencePiece model file.

    Raises:
        ValueError: not a SentencePiece file, or one that this cannot follow exactly: unigram, or with a normalizer.
    """
    from google.protobuf.message import DecodeError
    from transformers.convert_slow_tokenizer import import_protobuf

    model = import_protobuf().ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError:
        raise ValueError("not a SentencePiece model") from None
    if model.trainer_spec.model_type != BPE_MODEL or not model.pieces:
        raise ValueError("of SentencePiece models, only BPE is read; convert it to a Hugging Face tokenizer")
    rules = model.normalizer_spec
    if rules.precompiled_charsmap or rules.add_dummy_prefix or rules.remove_extra_whitespaces:
        raise ValueError("of SentencePiece models, only those that leave the text as it is (identity) are read")
    return _backend(model)


def _backend(model: Any) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    vocabulary = {piece.piece: number for number, piece in enumerate(model.pieces)}
    unknown = next((piece.piece for piece in model.pieces if piece.type == UNKNOWN), None)
    fallback = model.trainer_spec.byte_fallback
    backend = Tokenizer(
        models.BPE(vocab=vocabulary, merges=_merges(model), byte_fallback=fallback, unk_token=unknown, fuse_unk=True)
    )
    backend.normalizer = normalizers.Replace(" ", SPACE)
    backend.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    whole = [piece.piece for piece in model.pieces if piece.type == USER_DEFINED]  # found in text before any merge
    backend.add_tokens([AddedToken(piece, normalized=False) for piece in whole])
    return backend


def _merges(model: Any) -> list[tuple[str, str]]:
    """Every way to make a piece out of two, the best score first."""
    scores = {piece.piece: piece.score for piece in model.pieces if piece.type == NORMAL}
    found = []
    for number, (piece, score) in enumerate(scores.items()):
        for cut in range(1, len(piece)):
            if piece[:cut] in scores and piece[cut:] in scores:
                found.append((-score, number, cut, piece))
    return [(piece[:cut], piece[cut:]) for _, _, cut, piece in sorted(found)]
