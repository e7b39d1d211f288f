"""Tokenizers of the paper's kind: SentencePiece BPE read exactly, its own file, and a vocabulary trained here."""

from __future__ import annotations

import itertools
import os
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cwd.data.sentencepiece import known_file
from cwd.data.tokenizers import JsonTokenizer, load_tokenizer, open_tokenizer
from cwd.errors import UserError
from tests.data_helpers import TEXTS, unicode_text

FILE = os.environ.get("CWD_PAPER_TOKENIZER")
paper = pytest.mark.skipif(not FILE, reason="CWD_PAPER_TOKENIZER does not name the paper's vb100864_openmix_v1.model")
BEST = ["▁▁", "in", "he", "aa", "▁t", "th", "the", "▁the", "aaa", "aaaa", "▁in", "ab", "bab", "aba", "▁▁▁▁"]


def proto() -> Any:
    from transformers.convert_slow_tokenizer import import_protobuf

    return import_protobuf()


def small_model(path: Path, **changes: Any) -> Any:
    """Writes a SentencePiece BPE model of few pieces, with the paper's settings. Returns it."""
    module = proto()
    model = module.ModelProto()
    kinds = module.ModelProto.SentencePiece

    def add(piece: str, kind: int, score: float = 0.0) -> None:
        model.pieces.append(kinds(piece=piece, score=score, type=kind))

    for piece, kind in (("<r>", kinds.USER_DEFINED), ("<eos>", kinds.CONTROL), ("<unk>", kinds.UNKNOWN)):
        add(piece, kind)
    for byte in range(256):
        add(f"<0x{byte:02X}>", kinds.BYTE)
    for score, piece in enumerate([*BEST, *"▁abcdefhint0123\n"]):
        add(piece, kinds.NORMAL, -float(score))
    model.trainer_spec.model_type = changes.get("model_type", 2)
    model.trainer_spec.byte_fallback = True
    model.trainer_spec.unk_id = 2
    model.normalizer_spec.add_dummy_prefix = changes.get("add_dummy_prefix", False)
    model.normalizer_spec.remove_extra_whitespaces = False
    path.write_bytes(model.SerializeToString())
    return model


class Tables:
    """What the algorithm needs of a model."""

    def __init__(self, model: Any) -> None:
        self.ids = {piece.piece: number for number, piece in enumerate(model.pieces)}
        self.scores = {piece.piece: piece.score for piece in model.pieces if piece.type == 1}
        self.whole = [piece.piece for piece in model.pieces if piece.type == 4]


def merged(tables: Tables, text: str) -> list[int]:
    """SentencePiece's algorithm as its authors state it: join the neighbours whose piece scores best, the leftmost of
    equals, until none is a piece; then spell what is unknown in bytes. Pieces of users are found first.
    """
    ids, scores, whole = tables.ids, tables.scores, tables.whole
    parts: list[str] = []
    fixed: set[int] = set()
    while text:
        found = next((piece for piece in whole if text.startswith(piece)), "")
        if found:
            fixed.add(len(parts))
        parts.append(found or text[0].replace(" ", "▁"))
        text = text[len(parts[-1]) :]
    symbols = [(part, number in fixed) for number, part in enumerate(parts)]
    while True:
        best = None
        for i, ((left, a), (right, b)) in enumerate(itertools.pairwise(symbols)):
            score = scores.get(left + right) if not a and not b else None
            if score is not None and (best is None or score > best[0]):
                best = (score, i)
        if best is None:
            break
        i = best[1]
        symbols[i : i + 2] = [(symbols[i][0] + symbols[i + 1][0], False)]
    answer: list[int] = []
    for piece, _ in symbols:
        known = piece in scores or piece in whole
        answer += [ids[piece]] if known else [ids[f"<0x{byte:02X}>"] for byte in piece.encode()]
    return answer


WORDS = ["a", "b", "ab", " ", "  ", "the", "in", "th", "aaa", "<r>", "<eos>", "<0x41>", "é", "漢", "0", "12", "\n"]


def test_a_sentencepiece_model_gives_the_ids_that_its_algorithm_gives(tmp_path: Path) -> None:
    tables = Tables(small_model(tmp_path / "small.model"))
    tokenizer = load_tokenizer(str(tmp_path / "small.model"), None)
    assert tokenizer.vocab_size == len(tables.ids)
    draw = random.Random(0)
    lines = ["".join(draw.choices(WORDS, k=draw.randint(0, 25))) for _ in range(1500)]
    lines += ["".join(draw.choices("ab ", k=draw.randint(0, 40))) for _ in range(1500)]
    for line, ids in zip(lines, tokenizer.encode_batch(lines), strict=True):
        assert ids.tolist() == merged(tables, line), line
        assert tokenizer.decode(ids) == line
    tokenizer.save(tmp_path)
    assert open_tokenizer("any", tmp_path).fingerprint() == tokenizer.fingerprint()


def test_a_sentencepiece_model_gives_the_ids_that_the_library_gives(tmp_path: Path) -> None:
    library = pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")
    small_model(tmp_path / "small.model")
    tokenizer = load_tokenizer(str(tmp_path / "small.model"), None)
    theirs = library.SentencePieceProcessor(model_file=str(tmp_path / "small.model"))
    draw = random.Random(1)
    lines = ["".join(draw.choices(WORDS, k=draw.randint(0, 25))) for _ in range(3000)]
    assert [ids.tolist() for ids in tokenizer.encode_batch(lines)] == theirs.encode(lines)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"model_type": 1}, "only BPE is read"), ({"add_dummy_prefix": True}, "leave the text as it is")],
)
def test_a_model_that_cannot_be_followed_exactly_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    small_model(tmp_path / "other.model", **changes)
    with pytest.raises(UserError, match=rf"other\.model' cannot be loaded: .*{message}"):
        load_tokenizer(str(tmp_path / "other.model"), None)
    (tmp_path / "broken.model").write_bytes(b"\xff\xff not a model")
    with pytest.raises(UserError, match="cannot be loaded: not a SentencePiece model"):
        load_tokenizer(str(tmp_path / "broken.model"), None)


def test_the_papers_file_is_asked_for_and_another_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not there; fetch it from github\.com/google-deepmind/simply at commit"):
        load_tokenizer("vb100864_openmix_v1", None, folder=tmp_path)
    small_model(tmp_path / "vb100864_openmix_v1.model")
    with pytest.raises(UserError, match=r"is another file \(its sha256 is not 23152c52b14c7e35"):
        load_tokenizer("vb100864_openmix_v1", None, folder=tmp_path)


@paper
def test_the_papers_tokenizer_gives_the_ids_that_its_algorithm_gives(tmp_path: Path) -> None:
    assert FILE
    tokenizer = load_tokenizer("vb100864_openmix_v1", 100_864, file=FILE)
    assert tokenizer.vocab_size == 100_864
    model = proto().ModelProto()
    model.ParseFromString(known_file("vb100864_openmix_v1", FILE, tmp_path).read_bytes())
    assert model.pieces[0].piece == "<reserved_0>"
    tables, draw = Tables(model), random.Random(2)
    pieces = [piece.piece.replace("▁", " ") for piece in model.pieces[359::37]]
    lines = [*TEXTS[:10], *("".join(draw.choices([*pieces, *WORDS], k=12)) for _ in range(300))]
    for line, ids in zip(lines, tokenizer.encode_batch(lines), strict=True):
        assert ids.tolist() == merged(tables, line)
        assert tokenizer.decode(ids) == line


@paper
def test_the_papers_tokenizer_gives_the_ids_that_the_library_gives() -> None:
    library = pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")
    assert FILE
    tokenizer = load_tokenizer("vb100864_openmix_v1", None, file=FILE)
    source = [path.read_text() for path in sorted(Path(os.__file__).parent.glob("*.py"))[:40]]
    theirs = library.SentencePieceProcessor(model_file=FILE)
    assert [ids.tolist() for ids in tokenizer.encode_batch(source)] == theirs.encode(source)


SOURCE = "".join(path.read_text() for path in sorted(Path(os.__file__).parent.glob("*.py"))[:25])
FALLBACK = load_tokenizer("bpe_fallback", 1500, [*TEXTS[:20], SOURCE])
assert isinstance(FALLBACK, JsonTokenizer)


@given(text=unicode_text | st.text("<reserved_0>x41▁ 1\n", max_size=60))
@settings(deadline=None)
def test_a_fallback_vocabulary_spells_every_text_and_gives_it_back(text: str) -> None:
    [ids] = FALLBACK.encode_batch([text])
    assert FALLBACK.decode(ids) == text
    assert ids.min(initial=103) >= 103  # the reserved ids, 0 among them, are for no text


def test_a_fallback_vocabulary_is_as_the_papers() -> None:
    """103 reserved ids, 256 bytes, digits one by one, no piece longer than 16 or across words, rare characters as
    bytes, and exactly the size asked for.
    """
    assert FALLBACK.vocab_size == 1500
    [ids] = FALLBACK.encode_batch(["in 1234567 or ☃"])
    names = [FALLBACK.backend.id_to_token(int(one)) for one in ids]
    assert [name for name in names if name.isdigit()] == list("1234567")
    assert names[-3:] == ["<0xE2>", "<0x98>", "<0x83>"]
    assert FALLBACK.backend.id_to_token(103) == "<0x00>"
    pieces = [FALLBACK.backend.id_to_token(number) for number in range(359, 1500)]
    assert all(len(piece) <= 16 and (" " not in piece.lstrip(" ") or not piece.strip()) for piece in pieces)
    assert max(map(len, pieces)) > 5
    again = load_tokenizer("bpe_fallback", 1500, [SOURCE, *TEXTS[:20][::-1]])
    assert again.fingerprint() == FALLBACK.fingerprint()
    with pytest.raises(UserError, match="bpe_fallback needs a vocab_size of at least 360; got 300"):
        load_tokenizer("bpe_fallback", 300, TEXTS)
