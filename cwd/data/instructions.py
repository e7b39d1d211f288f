"""Instructions and answers: read, split, and laid out as rows in which only the answers are learned.

Two forms, in .json (a list) or .jsonl (an object a line), told apart by their keys:

Alpaca   {"instruction": ..., "input": ..., "output": ...}, the input may be absent or empty
chat     {"messages": [{"role": "user", "content": ...}, {"role": "assistant", ...}, ...]}, or ShareGPT's
         {"conversations": [{"from": "human", "value": ...}, {"from": "gpt", ...}, ...]}
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cwd.data.exercises import exercises
from cwd.errors import UserError

ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}
TEMPLATES = ("alpaca", "plain", "chat")
ALPACA = (  # of the Stanford Alpaca repository, without and with an input
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n",
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n",
)
PLAIN = ("{instruction}\n", "{instruction}\n{input}\n")
IGNORED = -100  # a label that is not learned, as in torch and transformers
Say = Callable[[str], None]
Turns = tuple[tuple[str, str], ...]  # (role, text)


class Malformed(Exception):
    """An example that is not one; the message says why."""


@dataclass(frozen=True)
class Example:
    """A conversation. One in Alpaca's form has a user's turn (instruction, input) and an assistant's."""

    turns: Turns
    alpaca: tuple[str, str] | None = None

    @property
    def digest(self) -> str:
        """The SHA-256 of its content."""
        return hashlib.sha256(json.dumps(self.turns).encode()).hexdigest()


def read_instructions(files: Sequence[str], say: Say) -> list[Example]:
    """The examples of the files, each once, in an order that follows from their content; of the built-in exercises,
    where no file is given. A malformed example is named by file and line, and left out.

    Raises:
        UserError: a file cannot be read or is of another kind, or there are fewer than two examples.
    """
    found: dict[str, Example] = {}
    for name in files:
        for where, value in _entries(Path(name).expanduser()):
            try:
                example = parse(value)
            except Malformed as error:
                say(f"data: {where}: left out, {error}")
                continue
            found[example.digest] = example
    if not files:
        found = {one.digest: one for one in map(parse, exercises())}
    if len(found) < 2:
        raise UserError(f"dataset.files={list(files)}: {len(found)} examples; training and validation need one each")
    return [found[digest] for digest in sorted(found)]


def _entries(path: Path) -> Iterator[tuple[str, Any]]:
    """(file and line, value) of each example; a line that is not JSON comes as a Malformed."""
    if path.suffix not in (".json", ".jsonl"):
        raise UserError(f"dataset.files: {path}: must be .json or .jsonl")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"dataset.files: {path}: cannot be read ({error})") from error
    if path.suffix == ".jsonl":
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield f"{path}:{number}", _value(line)
        return
    decoder, at = json.JSONDecoder(), _skip(text, 0)
    if text[at : at + 1] != "[":
        raise UserError(f"{path}:1: must be a list of examples")
    at = _skip(text, at + 1)
    while text[at : at + 1] != "]":
        place = text.count("\n", 0, at) + 1
        try:
            value, end = decoder.raw_decode(text, at)
        except ValueError as error:
            raise UserError(f"{path}:{place}: is not JSON ({error}); what follows cannot be read either") from error
        yield f"{path}:{place}", value
        at = _skip(text, end)
        if text[at : at + 1] == ",":
            at = _skip(text, at + 1)
        elif text[at : at + 1] != "]":
            raise UserError(f"{path}:{text.count(chr(10), 0, at) + 1}: a comma or ] is needed between examples")


def _value(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        return Malformed(f"it is not JSON ({error})")


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def parse(value: Any) -> Example:
    """An example of a JSON value.

    Raises:
        Malformed: it is none.
    """
    if isinstance(value, Malformed):
        raise value
    if not isinstance(value, dict):
        raise Malformed("it is not a JSON object")
    if "instruction" in value:
        texts = [value["instruction"], value.get("input") or "", value.get("output")]
        for name, text in zip(("instruction", "input", "output"), texts, strict=True):
            if not isinstance(text, str) or (name != "input" and not text.strip()):
                raise Malformed(f"{name} must be text, and not empty" if name != "input" else "input must be text")
        instruction, given, output = texts
        user = f"{instruction}\n{given}" if given else instruction
        return Example((("user", user), ("assistant", output)), (instruction, given))
    for key, role, content in (("messages", "role", "content"), ("conversations", "from", "value")):
        if key in value:
            return Example(_turns(value[key], key, role, content))
    raise Malformed("it has neither instruction nor messages nor conversations")


def _turns(value: Any, key: str, role: str, content: str) -> Turns:
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise Malformed(f"{key} must be a list of objects")
    turns = []
    for number, one in enumerate(value):
        if one.get(role) not in ROLES or not isinstance(one.get(content), str):
            raise Malformed(f"{key}[{number}] needs {role} (one of {', '.join(ROLES)}) and {content}, a text")
        turns.append((ROLES[one[role]], one[content]))
    if not any(who == "assistant" and text.strip() for who, text in turns):
        raise Malformed(f"{key} has no answer of an assistant")
    return tuple(turns)


def segments(example: Example, template: str, tokenizer: Any) -> list[tuple[str, bool]]:
    """The text in pieces, and which of them are answers.

    Args:
        template: alpaca, plain (both for one question and its answer), or chat, the tokenizer's own.

    Raises:
        Malformed: the template does not fit the example.
    """
    if template == "chat":
        return _chat(example.turns, tokenizer)
    roles = [role for role, _ in example.turns]
    if roles != ["user", "assistant"]:
        raise Malformed(f"template={template} takes one question and one answer; dataset.template=chat takes more")
    instruction, given = example.alpaca or (example.turns[0][1], "")
    prompt = (ALPACA if template == "alpaca" else PLAIN)[bool(given)].format(instruction=instruction, input=given)
    return [(prompt, False), (example.turns[1][1], True)]


def _chat(turns: Turns, tokenizer: Any) -> list[tuple[str, bool]]:
    messages = [{"role": role, "content": text} for role, text in turns]
    found, done = [], ""
    for i, (role, _) in enumerate(turns):
        if role != "assistant":
            continue
        before = tokenizer.apply_chat_template(messages[:i], tokenize=False, add_generation_prompt=True)
        after = tokenizer.apply_chat_template(messages[: i + 1], tokenize=False)
        if not (before.startswith(done) and after.startswith(before)):
            raise Malformed("the tokenizer's chat template rewrites earlier turns, so answers cannot be told apart")
        found += [(before[len(done) :], False), (after[len(before) :], True)]
        done = after
    return found


@dataclass(frozen=True)
class Rows:
    """Examples laid out: `ids`, `labels` (IGNORED where nothing is learned) and `positions`, each (N, T) int32.

    A label stands at its own token: the model predicts it from the tokens before. Positions begin anew with each
    example of a packed row.
    """

    ids: np.ndarray
    labels: np.ndarray
    positions: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


def lay_out(examples: Sequence[tuple[list[int], list[bool]]], seq_len: int, packing: bool) -> Rows:
    """One example a row, filled up with id 0; or, packed, as many whole examples a row as fit, in the given order.

    An example longer than `seq_len` is cut at its end.
    """
    rows: list[list[tuple[list[int], list[bool]]]] = []
    room = 0
    for ids, learned in examples:
        one = (ids[:seq_len], learned[:seq_len])
        if not (packing and rows and len(one[0]) <= room):
            rows.append([])
            room = seq_len
        rows[-1].append(one)
        room -= len(one[0])
    shape = (len(rows), seq_len)
    found = Rows(np.zeros(shape, np.int32), np.full(shape, IGNORED, np.int32), np.zeros(shape, np.int32))
    for r, row in enumerate(rows):
        at = 0
        for ids, learned in row:
            end = at + len(ids)
            found.ids[r, at:end] = ids
            found.labels[r, at:end] = np.where(learned, ids, IGNORED)
            found.labels[r, at] = IGNORED  # nothing comes before it that it could be predicted from
            found.positions[r, at:end] = np.arange(len(ids))
            at = end
        found.positions[r, at:] = np.arange(seq_len - at) + (0 if packing else at)
    return found


@dataclass(frozen=True)
class InstructionData:
    """What is learned and what is held out. `fingerprint` is of the rows and of the model that they are for."""

    train: Rows
    validation: Rows
    fingerprint: str
    counts: dict[str, int]  # examples of each part


def prepare_instructions(
    files: Sequence[str],
    tokenizer: Any,
    *,
    template: str,
    end: int | None,
    seq_len: int,
    packing: bool,
    validation_fraction: float,
    model: str,
    say: Say,
) -> InstructionData:
    """Reads, splits by the hash of the content, and lays out.

    Args:
        tokenizer: of transformers. end: the id that ends an answer; None for none. model: a hash of the model.

    Raises:
        UserError: as :func:`read_instructions`; or no example has an answer that fits in `seq_len`.
    """
    encoded = []
    for example in read_instructions(files, say):
        try:
            ids, learned = encode(segments(example, template, tokenizer), tokenizer, end)
        except Malformed as error:
            say(f"data: {example.turns[0][1][:40]!r}: left out, {error}")
            continue
        if any(learned[1:seq_len]):
            encoded.append((ids, learned))
        else:
            reason = f"its answer begins after training.seq_len={seq_len} tokens"
            say(f"data: {example.turns[0][1][:40]!r}: left out, {reason}")
    cut = min(max(1, round(validation_fraction * len(encoded))), len(encoded) - 1)
    if cut < 1:
        raise UserError(
            f"dataset=instructions: {len(encoded)} examples can be used; a larger training.seq_len is needed"
        )
    parts = lay_out(encoded[cut:], seq_len, packing), lay_out(encoded[:cut], seq_len, packing)
    digest = hashlib.sha256(model.encode())
    for rows in parts:
        for table in (rows.ids, rows.labels, rows.positions):
            digest.update(table.tobytes())
    return InstructionData(*parts, digest.hexdigest()[:16], {"train": len(encoded) - cut, "validation": cut})


def encode(pieces: Sequence[tuple[str, bool]], tokenizer: Any, end: int | None) -> tuple[list[int], list[bool]]:
    """The ids of an example, and which are of an answer; the last answer ends with `end`."""
    ids: list[int] = []
    learned: list[bool] = []
    for text, answer in pieces:
        own = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        ids += own
        learned += [answer] * len(own)
    if end is not None and ids[-1:] != [end]:
        ids.append(end)
        learned.append(True)
    return ids, learned
