"""Text prepared a second, by all of prepare_data (reading, unpacking, tokenising, checksums, writing, syncing, starting
processes), against the tokenizer library's own batch encoding of the same texts from memory, by turns.
"""

from __future__ import annotations

import gzip
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

from cwd.benchmarks.report import Table, publish, read_options
from cwd.benchmarks.timing import Turn, ratio_of_neighbours, time_by_turns
from cwd.data.building import prepare_set
from cwd.data.corpora import PythonSource
from cwd.data.published import Published
from cwd.data.sets import Request
from cwd.data.tokenizers import JsonTokenizer, load_tokenizer
from cwd.errors import UserError

OPTIONS: dict[str, int | str] = {
    "processes": 2,
    "megabytes": 48,
    "repeats": 3,
    "tokenizer": "bpe_fallback",
    "markdown": "",
}
FILES, DOCUMENT, BATCH = 8, 2000, 500  # files of C4's format; characters of a document; documents encoded at a time
VOCABULARY = 32_000  # of a tokenizer that is trained for this
CORPUS = Published("c4", "allenai/c4", "main", "en/c4-train.*.json.gz", "en/c4-validation.*.json.gz")
NOTE = (
    "The standard library's source in documents of 2,000 characters, in files of C4's format. The library's batch "
    "encoding has as many threads as prepare_data has processes. Target: at least 80% of its MB/s. Processor time "
    "is that of all threads and processes, and feels less of what else the machine does."
)


def main(arguments: Sequence[str]) -> None:
    """See scripts/benchmark.py; `arguments` are key=value."""
    options = read_options(arguments, OPTIONS)
    os.environ["RAYON_NUM_THREADS"] = str(options["processes"])  # read when the library first encodes
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = _write(folder / "source", int(options["megabytes"] * 1e6))
        tokenizer = load_tokenizer(options["tokenizer"], *_training(options["tokenizer"], texts))
        if not isinstance(tokenizer, JsonTokenizer):
            raise UserError(
                "tokenizer: for this benchmark, one of the tokenizers library that is a file, or bpe_fallback"
            )
        tokenizer.save(folder)
        times, processor = _measure(folder, tokenizer, texts, options)
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    table = Table("Text prepared a second", ["what", "MB/s", "of the library's", "processor s"], [NOTE])
    for what, found in times.items():
        ratio = ratio_of_neighbours(times["encode_batch"], found)
        table.add(what, f"{1e3 * megabytes / median(found):.2f}", str(ratio), f"{median(processor[what]):.2f}")
    publish("data", "Preparing data", arguments, [table], options["markdown"])


def _measure(
    folder: Path, tokenizer: JsonTokenizer, texts: list[str], options: dict[str, Any]
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Milliseconds of each way, by turns, and its seconds of processor time, the first of which is a warm-up's."""
    numbers = count()
    processor: dict[str, list[float]] = {"encode_batch": [], "prepare_data": []}

    def library() -> None:
        with _processor_time(processor["encode_batch"]):
            for start in range(0, len(texts), BATCH):
                tokenizer.backend.encode_batch(texts[start : start + BATCH], add_special_tokens=False)

    def ours() -> None:
        request = Request(CORPUS, str(folder / "tokenizer.json"), None, 0.01, folder / f"{next(numbers)}")
        with _processor_time(processor["prepare_data"]):
            prepare_set(
                request,
                source=str(folder / "source"),
                processes=options["processes"],
                say=lambda line: None,
                show=lambda done, total: None,
            )

    times = time_by_turns([Turn(library), Turn(ours)], options["repeats"], warmups=1)
    return dict(zip(processor, times, strict=True)), {what: found[1:] for what, found in processor.items()}


@contextmanager
def _processor_time(found: list[float]) -> Iterator[None]:
    """Notes the seconds that this process and the children that it waited for worked meanwhile."""
    before = sum(os.times()[:4])
    yield
    found.append(sum(os.times()[:4]) - before)


def _training(spec: str, texts: list[str]) -> tuple[int | None, list[str] | None]:
    return (VOCABULARY, texts) if spec in ("bpe", "bpe_fallback") else (None, None)


def _write(folder: Path, size: int) -> list[str]:
    """Files of C4's format. Returns the texts, in order."""
    whole = "".join(document.text for document in PythonSource().documents())
    starts = range(0, min(size, len(whole) - DOCUMENT), DOCUMENT)
    documents = [whole[start : start + DOCUMENT] for start in starts]
    # More than the library holds is the library again, each document with its number: no two are the same.
    rounds = -(-size // (DOCUMENT * len(documents)))
    texts = [f"{turn} {text}" for turn in range(rounds) for text in documents][: size // DOCUMENT]
    (folder / "en").mkdir(parents=True)
    ordered = []
    for number in range(FILES):
        name = f"c4-train.{number:05}-of-01024.json.gz" if number else "c4-validation.00000-of-00008.json.gz"
        with gzip.open(folder / "en" / name, "wt", compresslevel=6) as file:
            for text in texts[number::FILES]:
                file.write(json.dumps({"text": text, "timestamp": "2019-04-25T12:57:54Z", "url": ""}) + "\n")
        ordered += texts[number::FILES]
    return ordered
