"""How documents are split, packed and tokenised."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import subprocess
import sys
from collections import Counter
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cwd.data.corpora import PythonSource, divide
from cwd.data.tokenizers import JsonTokenizer, load_tokenizer, open_tokenizer
from cwd.errors import UserError
from tests.data_helpers import REPOSITORY, TEXTS, Memory, ready, ready_from, unicode_text


@given(
    words=st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=3), min_size=1, max_size=30),
    spaces=st.lists(st.sampled_from([" ", "\n", "\t  "]), min_size=30, max_size=30),
    fraction=st.floats(0.01, 0.99),
)
@settings(deadline=None)
def test_no_document_is_on_both_sides_or_twice_even_when_spaced_differently(
    words: list[list[str]], spaces: list[str], fraction: float
) -> None:
    texts = [space.join(document) + space for document, space in zip(words, spaces, strict=False)]
    distinct = {tuple(text.split()) for text in texts}
    if len(distinct) < 2:
        with pytest.raises(UserError, match=r"dataset\.separator"):
            divide(Memory(texts), fraction)
        return
    division = divide(Memory(texts), fraction)
    kept = [digest for split in ("train", "validation") for digest in division.documents[split]]
    by_digest = {_sha(text): tuple(text.split()) for text in texts}
    assert Counter(by_digest[digest] for digest in kept) == Counter(distinct)
    assert division.duplicates == len(texts) - len(distinct)
    assert min(map(len, division.documents.values())) >= 1
    assert divide(Memory(texts[::-1]), fraction) == division


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_validation_is_the_fewest_documents_in_hash_order_that_reach_the_fraction() -> None:
    order = sorted(TEXTS, key=lambda text: _sha(" ".join(text.split())))
    sizes = [len(text.encode()) for text in order]
    cut = next(k for k in range(1, 40) if sum(sizes[:k]) >= 0.3 * sum(sizes))
    division = divide(Memory(TEXTS), 0.3)
    assert division.documents["validation"] == [_sha(text) for text in order[:cut]]
    assert division.documents["train"] == [_sha(text) for text in order[cut:]]


def test_documents_are_packed_with_nothing_between_them(source: Path, tmp_path: Path) -> None:
    data = ready(source, tmp_path / "data")
    order = sorted(TEXTS, key=lambda text: _sha(" ".join(text.split())))
    count = data.manifest["splits"]["validation"]["documents"]
    assert bytes(data.tokens("validation")) == "".join(order[:count]).encode()
    assert bytes(data.tokens("train")) == "".join(order[count:]).encode()
    assert data.tokens("train").dtype == np.uint8
    assert data.bytes_per_token("train") == 1


def test_the_result_depends_on_content_and_not_on_names_paths_or_order(source: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    lines = (source / "a.jsonl").read_text().splitlines(keepends=True)
    (moved / "z.jsonl").write_text("".join(lines[:15][::-1]))
    with gzip.open(moved / "b.jsonl.gz", "wt") as handle:
        handle.write("".join(lines[10:]))
    one = ready(source, tmp_path / "one", tokenizer="bpe", vocab_size=300)
    two = ready(moved, tmp_path / "two", tokenizer="bpe", vocab_size=300)
    assert one.fingerprint == two.fingerprint
    assert one.folder.name == two.folder.name
    assert two.manifest["duplicates_removed"] == 5
    assert two.tokens("train").dtype == np.uint16


def test_fingerprints_are_what_they_were_when_runs_were_first_recorded(tmp_path: Path) -> None:
    """They are part of every run's key: another value would lose every recorded run."""
    assert ready_from(Memory(TEXTS), tmp_path).fingerprint == "3352fd1bd9ac37ed"
    corpus = PythonSource()
    data = ready_from(corpus, tmp_path, validation_fraction=0.05)
    documents = {_sha(" ".join(document.text.split())): document.text for document in corpus.documents()}
    order = [documents[digest].encode() for digest in sorted(documents)]
    reached, total = list(accumulate(map(len, order))), sum(map(len, order))
    cut = next(number for number, size in enumerate(reached, 1) if size >= 0.05 * total)
    digests = [hashlib.sha256(b"".join(part)).hexdigest() for part in (order[cut:], order[:cut])]
    expected = hashlib.sha256(json.dumps(["bytes", *digests], sort_keys=True).encode()).hexdigest()[:16]
    assert data.fingerprint == expected


def test_what_changes_the_ids_changes_the_fingerprint(source: Path, tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [{}, {"validation_fraction": 0.4}]
    changes += [{"tokenizer": "bpe", "vocab_size": size} for size in (280, 290)]
    found = [ready(source, tmp_path / "data", **change) for change in changes]
    assert len({data.fingerprint for data in found}) == len({data.folder for data in found}) == 4


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 7])
def test_a_validation_fraction_out_of_range_is_refused(source: Path, tmp_path: Path, fraction: float) -> None:
    with pytest.raises(UserError, match="validation_fraction must be between 0 and 1"):
        ready(source, tmp_path / "data", validation_fraction=fraction)


BPE = load_tokenizer("bpe", 300, TEXTS)
assert isinstance(BPE, JsonTokenizer)


@given(texts=st.lists(unicode_text, min_size=1, max_size=4))
@settings(deadline=None)
@pytest.mark.parametrize("tokenizer", [load_tokenizer("bytes", None), BPE], ids=["bytes", "bpe"])
def test_decoding_gives_the_text_back(tokenizer: Any, texts: list[str]) -> None:
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert ids.dtype.kind == "u"
        assert ids.max(initial=0) < tokenizer.vocab_size
        assert tokenizer.decode(ids) == text


def test_bpe_is_deterministic_and_has_no_special_tokens(tmp_path: Path) -> None:
    assert BPE.vocab_size == 300
    assert load_tokenizer("bpe", 300, TEXTS[::-1]).fingerprint() == BPE.fingerprint()
    command = "from tests.test_data_packing import BPE; print(BPE.fingerprint())"
    answer = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert answer.stdout.strip() == BPE.fingerprint()
    assert BPE.decode(BPE.encode_batch(["<s>a</s><|endoftext|>"])[0]) == "<s>a</s><|endoftext|>"


def test_bpe_is_trained_on_the_training_split_only(tmp_path: Path) -> None:
    texts = [f"zq{i}x " * 30 for i in range(30)]
    data = ready_from(Memory(texts), tmp_path, tokenizer="bpe", vocab_size=400, validation_fraction=0.3)
    train = data.tokenizer().decode(data.tokens("train"))
    held_out = [text for text in texts if text not in train]
    assert len(held_out) == data.manifest["splits"]["validation"]["documents"] >= 9
    kept = [text for text in texts if text in train]
    assert data.manifest["tokenizer"]["fingerprint"] == load_tokenizer("bpe", 400, kept).fingerprint()


def test_a_text_too_small_for_the_vocabulary_is_said(source: Path, tmp_path: Path) -> None:
    says: list[str] = []
    data = ready(source, tmp_path / "data", says, tokenizer="bpe", vocab_size=60_000)
    assert 256 < data.vocab_size < 1000
    assert any(f"{data.vocab_size} ids instead of 60000" in line for line in says)


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `save_pretrained` leaves it, of a tokenizer that would add a BOS and truncate if it were let."""
    from tokenizers import Tokenizer, processors
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_str(BPE.backend.to_str())
    backend.add_special_tokens(["<s>"])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 300)])
    backend.enable_truncation(8)
    folder = tmp_path_factory.mktemp("hugging_face")
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", model_max_length=8).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("bare", [False, True], ids=["folder", "tokenizer.json alone"])
def test_a_hugging_face_tokenizer_by_path(hugging_face: Path, source: Path, tmp_path: Path, bare: bool) -> None:
    path = tmp_path / "tokenizer"
    path.mkdir()
    for file in [hugging_face / "tokenizer.json"] if bare else hugging_face.iterdir():
        shutil.copy(file, path)
    tokenizer = load_tokenizer(str(path), None)
    assert tokenizer.vocab_size == 301
    for text, ids in zip(TEXTS, tokenizer.encode_batch(TEXTS), strict=True):
        assert np.array_equal(ids, BPE.encode_batch([text])[0])
        assert tokenizer.decode(ids) == text
    assert tokenizer.fingerprint() == load_tokenizer(str(path), 301).fingerprint()
    data = ready(source, tmp_path / "data", tokenizer=str(path))
    shutil.rmtree(path)  # the prepared folder holds all it needs
    assert data.tokenizer().fingerprint() == data.manifest["tokenizer"]["fingerprint"]
    assert "cat sat" in data.tokenizer().decode(data.tokens("train")[:200])


def test_a_tokenizer_that_changes_at_its_path_is_noticed(hugging_face: Path, source: Path, tmp_path: Path) -> None:
    path = shutil.copy(hugging_face / "tokenizer.json", tmp_path / "tokenizer.json")
    first = ready(source, tmp_path / "data", tokenizer=str(path))
    BPE.backend.save(str(path))
    assert ready(source, tmp_path / "data", tokenizer=str(path)).fingerprint != first.fingerprint


def test_a_tokenizer_that_cannot_be_loaded_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    def unreachable(*args: Any, **options: Any) -> None:
        raise OSError("We couldn't connect to the hub\nand here are ten more lines")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", unreachable)
    (tmp_path / "broken.json").write_text("{")
    for spec in ("gpt3-from-nowhere", "byte", "./nowhere", str(tmp_path), str(tmp_path / "broken.json")):
        with pytest.raises(UserError, match=r"cannot be loaded: .*allowed: bytes, bpe") as caught:
            load_tokenizer(spec, None)
        assert "\n" not in str(caught.value)
        assert ("nearest: 'bytes'" in str(caught.value)) == (spec == "byte")


@pytest.mark.parametrize(
    ("spec", "vocab_size", "message"),
    [("bpe", None, "at least 256"), ("bpe", 255, "at least 256"), ("bytes", 300, "has 256 ids, not 300")],
)
def test_a_vocabulary_that_cannot_be_is_refused(spec: str, vocab_size: int | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_tokenizer(spec, vocab_size, ["a"])


def test_a_saved_tokenizer_opens_again(tmp_path: Path) -> None:
    BPE.save(tmp_path)
    assert open_tokenizer("bpe", tmp_path).fingerprint() == BPE.fingerprint()
