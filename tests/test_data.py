"""Data: what is read, how it is split and packed, what survives damage and kills, and which rows a batch holds."""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cwd.data.batches import epoch_order, evaluation_rows, inputs_and_targets, rows
from cwd.data.corpora import Document, PythonSource, TextFiles, divide
from cwd.data.tokenizers import load_tokenizer, open_tokenizer, train_bpe
from cwd.data.tokens import TokenData, prepare
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


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with one .jsonl file of 40 documents."""
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return folder


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


# --- batches ------------------------------------------------------------------------------------------------------------------


def numbered(count: int, seq_len: int, rest: int = 0) -> np.ndarray:
    """Tokens whose row r is filled with r, so that a batch tells which rows it holds."""
    return np.concatenate([np.repeat(np.arange(count), seq_len), np.full(rest, count)]).astype("<u4")


@given(
    count=st.integers(1, 30), batch_size=st.integers(1, 50), seed=st.integers(0, 2**64 - 1), epochs=st.integers(1, 3)
)
@settings(deadline=None)
def test_each_epoch_visits_every_row_once_and_batches_cross_epochs(
    count: int, batch_size: int, seed: int, epochs: int
) -> None:
    tokens = numbered(count, 4, rest=3)
    steps = -(-count * epochs // batch_size)
    batches = [rows(tokens, seed=seed, step=step, batch_size=batch_size, seq_len=4) for step in range(steps)]
    assert all(batch.shape == (batch_size, 4) and batch.dtype == np.int64 for batch in batches)
    stream = np.concatenate(batches)
    assert (stream == stream[:, :1]).all()
    for epoch in range(epochs):
        assert sorted(stream[epoch * count : (epoch + 1) * count, 0]) == list(range(count))


def test_a_batch_is_the_documented_function_of_data_seed_and_step() -> None:
    """Written out independently, one sample at a time; also in any order and with any batch size."""
    tokens = np.random.default_rng(0).integers(0, 256, 1000).astype(np.uint8)
    seq_len, count, seed = 30, 33, 5

    def sample(i: int) -> np.ndarray:
        order = np.random.Generator(np.random.Philox(key=[seed, i // count])).permutation(count)
        return tokens[order[i % count] * seq_len :][:seq_len]

    for step in (9, 0, 3, 9):
        batch = rows(tokens, seed=seed, step=step, batch_size=8, seq_len=seq_len)
        assert np.array_equal(batch, [sample(step * 8 + j) for j in range(8)])
    halves = [rows(tokens, seed=seed, step=step, batch_size=4, seq_len=seq_len) for step in (18, 19)]
    assert np.array_equal(batch, np.concatenate(halves))


def test_the_order_differs_between_epochs_and_between_seeds() -> None:
    orders = {tuple(epoch_order(seed, epoch, 50)) for seed in (0, 1, 2**63, 2**63 + 1) for epoch in range(3)}
    assert len(orders) == 12


def test_the_order_is_what_it_was_when_results_were_first_published() -> None:
    """A numpy that draws other permutations would silently change every run."""
    assert epoch_order(0, 0, 10).tolist() == [0, 7, 8, 6, 9, 5, 1, 3, 2, 4]


def test_a_batch_reads_nothing_but_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "sparse.bin"
    with open(path, "wb") as handle:
        handle.truncate(2**40)  # a terabyte of holes: reading it all would not end
    tokens = np.memmap(path, dtype="<u2", mode="r")
    assert rows(tokens, seed=0, step=0, batch_size=4, seq_len=2**20).sum() == 0
    assert evaluation_rows(tokens, 3, 2**20).shape == (3, 2**20)


@given(count=st.integers(1, 40), wanted=st.integers(1, 60))
def test_evaluation_rows_are_distinct_and_evenly_spread(count: int, wanted: int) -> None:
    chosen = evaluation_rows(numbered(count, 3, rest=2), wanted, 3)[:, 0]
    assert len(chosen) == min(count, wanted)
    gaps = np.diff([*chosen, count])
    assert gaps.min() >= 1
    assert gaps.max() - gaps.min() <= 1


def test_every_token_is_a_target_and_the_first_is_predicted_from_id_0() -> None:
    inputs, targets = inputs_and_targets(np.array([[5, 6, 7], [8, 9, 10]]))
    assert inputs.tolist() == [[0, 5, 6], [0, 8, 9]]
    assert targets.tolist() == [[5, 6, 7], [8, 9, 10]]


def test_a_split_shorter_than_a_row_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"train split has 7 tokens.*seq_len=8"):
        rows(np.zeros(7, np.uint8), seed=0, step=0, batch_size=1, seq_len=8)
    with pytest.raises(UserError, match=r"validation split has 7 tokens.*seq_len=8"):
        evaluation_rows(np.zeros(7, np.uint8), 1, 8)


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"seed": 2**64}, {"step": -1}, {"batch_size": 0}, {"seq_len": 0}])
def test_arguments_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        rows(np.zeros(99, np.uint8), **({"seed": 0, "step": 0, "batch_size": 1, "seq_len": 8} | wrong))


# --- splitting and packing ----------------------------------------------------------------------------------------------------


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


def test_what_changes_the_ids_changes_the_fingerprint(source: Path, tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [{}, {"validation_fraction": 0.4}]
    changes += [{"tokenizer": "bpe", "vocab_size": size} for size in (280, 290)]
    found = [ready(source, tmp_path / "data", **change) for change in changes]
    assert len({data.fingerprint for data in found}) == len({data.folder for data in found}) == 4


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 7])
def test_a_validation_fraction_out_of_range_is_refused(source: Path, tmp_path: Path, fraction: float) -> None:
    with pytest.raises(UserError, match="validation_fraction must be between 0 and 1"):
        ready(source, tmp_path / "data", validation_fraction=fraction)


# --- reuse, damage, kills, races ----------------------------------------------------------------------------------------------


def test_unchanged_sources_are_not_read_again(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = ready(source, tmp_path / "data")
    monkeypatch.setattr(TextFiles, "documents", lambda self: pytest.fail("the sources were read again"))
    assert ready(source, tmp_path / "data").fingerprint == first.fingerprint
    shutil.move(tmp_path / "data", tmp_path / "moved")
    assert ready(source, tmp_path / "moved").fingerprint == first.fingerprint


def test_touched_sources_are_read_again_and_changed_ones_prepared_again(source: Path, tmp_path: Path) -> None:
    says: list[str] = []
    first = ready(source, tmp_path / "data", says)
    os.utime(source / "a.jsonl", ns=(1, 1))
    del says[:]
    assert ready(source, tmp_path / "data", says).fingerprint == first.fingerprint
    assert not says
    with open(source / "a.jsonl", "a") as handle:
        handle.write('{"text": "one more"}\n')
    assert ready(source, tmp_path / "data", says).fingerprint != first.fingerprint
    (source / "b.txt").write_text("and another file")
    assert ready(source, tmp_path / "data").manifest["splits"]["train"]["documents"] >= 38
    assert len({ready(source, tmp_path / "data").folder, first.folder}) == 2


def truncate(folder: Path) -> None:
    with open(folder / "train.bin", "r+b") as handle:
        handle.truncate(100)


def flip_a_byte(folder: Path) -> None:
    path = folder / "validation.bin"
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def break_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


def break_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text((folder / "manifest.json").read_text()[:50])


def alter_manifest(folder: Path) -> None:
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace('"vocab_size": 280', '"vocab_size": 281'))


def replace_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("[1, 2]")


def remove_a_file(folder: Path) -> None:
    (folder / "train.bin").unlink()


@pytest.mark.parametrize(
    "damage",
    [truncate, flip_a_byte, break_tokenizer, break_manifest, alter_manifest, replace_manifest, remove_a_file],
    ids=lambda damage: damage.__name__,
)
def test_damage_is_noticed_said_and_repaired(source: Path, tmp_path: Path, damage: Any) -> None:
    first = ready(source, tmp_path / "data", tokenizer="bpe", vocab_size=280)
    good = {path.name: path.read_bytes() for path in first.folder.iterdir()}
    damage(first.folder)
    says: list[str] = []
    again = ready(source, tmp_path / "data", says, tokenizer="bpe", vocab_size=280)
    assert [line for line in says if "building it again" in line and str(first.folder) in line] == says[:1]
    assert {path.name: path.read_bytes() for path in again.folder.iterdir()} == good
    assert again.fingerprint == first.fingerprint
    assert not list((tmp_path / "data").glob("*.tmp"))


def test_a_broken_index_is_no_harm(source: Path, tmp_path: Path) -> None:
    first = ready(source, tmp_path / "data")
    for content in ("", "[]", '{"key": 3}', "\0"):
        next((tmp_path / "data").glob("index-*.json")).write_text(content)
        assert ready(source, tmp_path / "data").fingerprint == first.fingerprint


# Counts the file operations under `root` as they happen and kills its own process just before the one with the given number.
CHILD = """
import os, signal, sys
from pathlib import Path
source, root, stop = sys.argv[1], sys.argv[2], int(sys.argv[3])
from cwd.data.corpora import TextFiles
from cwd.data.tokens import prepare
seen = 0
def watch(event, arguments):
    global seen
    if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "fcntl.flock") and root in str(arguments):
        seen += 1
        if seen == stop:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(watch)
while stop < 0 and not Path(source).with_suffix(".go").exists():
    pass
data = prepare(TextFiles([source]), tokenizer="bytes", vocab_size=None, validation_fraction=0.1, root=Path(root),
               progress=lambda line: None)
print(seen, data.fingerprint, data.folder.name)
"""


def start(source: Path, root: Path, stop: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD, str(source), str(root), str(stop)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)


@pytest.mark.parametrize("damaged", [False, True], ids=["first preparation", "repair"])
def test_a_kill_at_any_moment_leaves_nothing_mistaken_for_good(source: Path, tmp_path: Path, damaged: bool) -> None:
    good = ready(source, tmp_path / "good")
    expected = {path.name: path.read_bytes() for path in good.folder.iterdir()}

    def root(stop: int) -> Path:
        folder = tmp_path / f"data{stop:03}"
        if damaged:
            shutil.copytree(tmp_path / "good", folder)
            flip_a_byte(folder / good.folder.name)
        return folder

    whole = start(source, root(0), 0)
    operations = int(whole.communicate(timeout=30)[0].split()[0])
    assert operations > 10
    stops = sorted(set(np.linspace(1, operations, 12).astype(int).tolist()))
    children = [start(source, root(stop), stop) for stop in stops]
    assert [child.wait(timeout=60) for child in children] == [-signal.SIGKILL] * len(stops)
    for stop in stops:
        folder = tmp_path / f"data{stop:03}"
        data = ready(source, folder)
        assert {path.name: path.read_bytes() for path in data.folder.iterdir()} == expected
        assert data.fingerprint == good.fingerprint
        assert not list(folder.glob("*.tmp"))


def test_two_processes_at_once_end_with_the_same_good_folder(source: Path, tmp_path: Path) -> None:
    children = [start(source, tmp_path / "data", -1) for _ in range(3)]
    source.with_suffix(".go").touch()
    answers = {tuple(child.communicate(timeout=60)[0].split()[1:]) for child in children}
    data = ready(source, tmp_path / "data")
    assert answers == {(data.fingerprint, data.folder.name)}
    assert sorted(path.suffix for path in (tmp_path / "data").iterdir()) == ["", ".json", ".lock"]


def test_a_living_process_keeps_its_temporary_folder(source: Path, tmp_path: Path) -> None:
    (tmp_path / "data" / "0123.tmp").mkdir(parents=True)
    (tmp_path / "data" / "4567.tmp").mkdir()
    with open(tmp_path / "data" / "0123.lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        ready(source, tmp_path / "data")
        assert [path.name for path in (tmp_path / "data").glob("*.tmp")] == ["0123.tmp"]


def test_a_source_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    class Shifting(Memory):
        def documents(self) -> Iterator[Document]:
            yield from super().documents()
            self.texts = ["other", *self.texts[1:]]

    with pytest.raises(UserError, match="changed while they were read"):
        ready_from(Shifting(["a", "b"]), tmp_path)


def test_prepared_data_is_found_without_importing_anything_heavy(source: Path, tmp_path: Path) -> None:
    heavy = ready(source, tmp_path / "data", tokenizer="bpe", vocab_size=280)
    code = CHILD.replace('"bytes", vocab_size=None', '"bpe", vocab_size=280')
    code += "assert not {'torch', 'transformers', 'datasets', 'tokenizers'} & set(sys.modules)"
    command = [sys.executable, "-c", code, str(source), str(tmp_path / "data"), "0"]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=True).stdout
    assert answer.split()[1] == heavy.fingerprint


# --- tokenizers ---------------------------------------------------------------------------------------------------------------

BPE = train_bpe(TEXTS, 300)


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
    assert train_bpe(TEXTS[::-1], 300).fingerprint() == BPE.fingerprint()
    command = "from tests.test_data import BPE; print(BPE.fingerprint())"
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
    assert data.manifest["tokenizer"]["fingerprint"] == train_bpe(kept, 400).fingerprint()


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


# --- where text comes from ----------------------------------------------------------------------------------------------------


def test_the_standard_library_is_there_without_its_tests() -> None:
    corpus = PythonSource()
    documents = {document.source: document.text for document in corpus.documents()}
    assert documents["json/decoder.py"] == Path(json.decoder.__file__).read_text()
    forbidden = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
    assert not [name for name in documents if forbidden & set(Path(name).parts) or not name.endswith(".py")]
    assert sum(map(len, documents.values())) > 5_000_000
    assert str(corpus.folder) not in json.dumps(corpus.spec())


def test_a_python_without_its_source_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path / "python311.zip"))
    with pytest.raises(UserError, match=r"no standard library source in .*python311\.zip"):
        list(PythonSource().documents())


def test_files_folders_globs_home_and_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.txt", "deep/er/b.md", "deep/c.py", "deep/ignored.csv", "d[1].txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path / "deep")

    def names(*files: str) -> list[str]:
        return [document.text for document in TextFiles(list(files)).documents()]

    assert names("~/a.txt", "../a.txt", "../*.txt") == ["a.txt", "d[1].txt"]
    assert names(".") == names("../deep") == ["deep/c.py", "deep/er/b.md"]
    assert names("~/**/*.md") == ["deep/er/b.md"]
    assert names("../d[1].txt") == ["d[1].txt"]


def test_a_separator_cuts_text_and_empty_documents_are_dropped(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("one\r\n---two é---\n ---".encode())
    (tmp_path / "b.py").write_text("x = 1 --- 2")
    (tmp_path / "c.jsonl").write_text('\n{"body": ""}\n{"body": "x---y", "text": 3}\n')
    texts = [document.text for document in TextFiles([str(tmp_path)], "body", "---").documents()]
    assert texts == ["one\r\n", "two é", "x = 1 --- 2", "x---y"]
    assert "separator" in refused([str(tmp_path)], separator="")


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{oops", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[1]", "is not a JSON object"),
        (b'{"texts": "a"}', "lacks the field 'text' (nearest: 'texts')"),
        (b'{"body": "a"}', "lacks the field 'text' (it has: 'body')"),
        (b'{"text": null}', "the field 'text' is null"),
        (b'{"text": "\\ud800"}', "surrogate"),
        (b'{"text": "\xff"}', "byte 27 is not UTF-8"),
    ],
)
def test_a_wrong_json_line_is_named_by_file_and_number(tmp_path: Path, suffix: str, line: bytes, message: str) -> None:
    path = tmp_path / f"a{suffix}"
    content = b'{"text": "good"}\n' + line + b"\n"
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    said = refused([str(path)])
    assert str(path) in said
    assert "line 2" in said
    assert message in said


def test_undecodable_text_is_named_by_file_and_byte(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"12345\xff")
    assert "a.txt: byte 5 is not UTF-8" in refused([str(tmp_path)])


def test_a_cut_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "good"}\n' * 1000)[:-10])
    assert "a.jsonl.gz cannot be read" in refused([str(tmp_path)])


def test_what_matches_nothing_is_named_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "shakespeare").mkdir()
    (tmp_path / "table.csv").write_text("a,b")
    assert "'shakespeare'" in refused([f"{tmp_path}/shakespear"])
    assert "'shakespeare'" in refused([f"{tmp_path}/shakespear/hamlet.txt"])
    assert "matches nothing" in refused([f"{tmp_path}/*.nothing"])
    for kind in (refused([f"{tmp_path}/table.csv"]), refused([f"{tmp_path}/*.csv"]), refused([f"{tmp_path}"])):
        assert ".txt, .md, .py, .jsonl, .jsonl.gz" in kind
    assert "dataset.files is empty" in refused([])
