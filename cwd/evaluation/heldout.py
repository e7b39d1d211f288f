"""Multiple-choice tasks made from held-out text, for where no hub is: the suite ``local``.

Every item has a context and four choices of one length, so that accuracy needs no normalisation and chance is 1/4:

local_continuation   which piece of text follows; the others follow elsewhere
local_identifier     which identifier stands here; the others stand elsewhere
local_order          which of four versions of a line is the one written; in the others two words have changed places

The items are a function of the text alone: two runs on the same data answer the same questions.
"""

from __future__ import annotations

import hashlib
import json
import keyword
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import yaml

from cwd.data.tokens import TokenData
from cwd.errors import UserError
from cwd.files import write_atomically

VERSION = 1.0  # of the tasks: raised when the same text comes to give other items
ITEMS = 400  # of a task, at most
FEWEST = 20
CHOICES = 4
CONTEXT, PIECE, ANSWER = 80, 24, 32  # characters: 128 tokens for both are few enough for small models
WORD = re.compile(r"\b[A-Za-z_][A-Za-z0-9_]*")
MOST_TEXT = 4_000_000  # tokens
Item = dict[str, Any]
Place = tuple[
    int, str, Callable[[Random], list[str]]
]  # where the right choice starts, the choice, and three wrong ones


def write_tasks(data: TokenData, root: Path) -> Path:
    """The tasks of the data's held-out text as a folder of the harness's files, made if it is not there.

    Raises:
        UserError: too little held-out text.
    """
    folder = root / f"suite-{data.fingerprint}-{VERSION:g}"
    if all((folder / f"{name}.jsonl").exists() for name in MAKERS):
        found = {}
    else:
        found = make_items(data.tokenizer().decode(data.tokens("validation")[:MOST_TEXT].tolist()))
    for name, items in found.items():
        if len(items) < FEWEST:
            raise UserError(
                f"suite=local: the held-out text gives {len(items)} items for {name}, and {FEWEST} are needed; hold "
                "out more (dataset.validation_fraction)"
            )
    folder.mkdir(parents=True, exist_ok=True)
    for name, items in found.items():
        write_atomically(folder / f"{name}.jsonl", "".join(json.dumps(item) + "\n" for item in items).encode())
    for name in MAKERS:  # each time, as they name the folder, which may have been moved
        write_atomically(folder / f"{name}.yaml", yaml.safe_dump(_task(name, folder), sort_keys=False).encode())
    return folder


def _task(name: str, folder: Path) -> dict[str, Any]:
    place = {"data_files": {"test": str((folder / f"{name}.jsonl").absolute())}, "cache_dir": str(folder.absolute())}
    return {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": place,
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{context}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "label",
        "target_delimiter": "",
        "metric_list": [
            {"metric": one, "aggregation": "mean", "higher_is_better": True} for one in ("acc", "acc_norm")
        ],
        "metadata": {"version": VERSION},
    }


def make_items(text: str) -> dict[str, list[Item]]:
    """Up to ITEMS items of each task, from places that are spread evenly over the text."""
    return {name: _spread(text, name, make) for name, make in MAKERS.items()}


def _spread(text: str, name: str, make: Callable[[str], Iterator[Place]]) -> list[Item]:
    """Items at ITEMS of all places; the right choice stands at each position equally often."""
    places = [(start, right, others) for start, right, others in make(text) if _fits(text, start, right)]
    chosen = [places[i * len(places) // ITEMS] for i in range(ITEMS)] if len(places) > ITEMS else places
    items: list[Item] = []
    for number, (start, right, others) in enumerate(chosen):
        context = text[max(0, start - CONTEXT) : start]
        random = Random(hashlib.sha256(f"{name} {number} {context}{right}".encode()).digest())
        wrong = others(random)
        if len(set(wrong) | {right}) < CHOICES:
            continue
        label = len(items) % CHOICES
        choices = [*wrong[:label], right, *wrong[label:]]
        items.append({"context": context, "choices": choices, "label": label})
    return items


def _continuations(text: str) -> Iterator[Place]:
    starts = [m.start() for m in WORD.finditer(text) if CONTEXT <= m.start() < len(text) - PIECE]
    starts = [one for one in starts if text[one - 1] == " " and _plain(text[one : one + PIECE])]
    for start in starts[:: max(1, len(starts) // (2 * ITEMS))]:
        yield (
            start,
            text[start : start + PIECE],
            lambda random: [text[one : one + PIECE] for one in random.sample(starts, CHOICES - 1)],
        )


def _identifiers(text: str) -> Iterator[Place]:
    found = [(m.start(), m[0]) for m in WORD.finditer(text) if m.start() >= CONTEXT and _is_identifier(m[0])]
    by_length: dict[int, list[str]] = {}
    for word, count in sorted(Counter(word for _, word in found).items()):
        if count > 1:
            by_length.setdefault(len(word), []).append(word)
    for start, word in found[:: max(1, len(found) // (2 * ITEMS))]:
        like = [one for one in by_length.get(len(word), []) if one != word]
        if len(like) >= CHOICES - 1:
            yield start, word, lambda random, like=like: random.sample(like, CHOICES - 1)  # type: ignore[misc]


def _orders(text: str) -> Iterator[Place]:
    start = 0
    for line in text.splitlines(keepends=True):
        words = [m.span() for m in WORD.finditer(line.rstrip())]
        begin = len(line) - len(line.lstrip())
        body = line.strip()
        if start + begin >= CONTEXT and len(words) >= CHOICES and len(body) <= ANSWER and _plain(body):
            yield start + begin, body, lambda random, body=body: _swapped(body, random)  # type: ignore[misc]
        start += len(line)


def _swapped(body: str, random: Random) -> list[str]:
    """CHOICES - 1 versions of a line in which two different words have changed places; fewer if it has not so many."""
    spans = [m.span() for m in WORD.finditer(body)]
    pairs = [(a, b) for i, a in enumerate(spans) for b in spans[i + 1 :] if body[slice(*a)] != body[slice(*b)]]
    random.shuffle(pairs)
    made = [body[: a[0]] + body[slice(*b)] + body[a[1] : b[0]] + body[slice(*a)] + body[b[1] :] for a, b in pairs]
    return [one for one in dict.fromkeys(made) if one != body][: CHOICES - 1]


def _fits(text: str, start: int, right: str) -> bool:
    """Whether the answer is short enough. The harness moves the white space at a context's end into the answer."""
    context = text[max(0, start - CONTEXT) : start]
    return len(context) - len(context.rstrip()) + len(right) <= ANSWER


def _is_identifier(word: str) -> bool:
    return 4 <= len(word) <= 12 and not keyword.iskeyword(word)


def _plain(text: str) -> bool:
    return text.isascii() and text.isprintable()


MAKERS = {"local_continuation": _continuations, "local_identifier": _identifiers, "local_order": _orders}
