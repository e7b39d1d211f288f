"""BPE vocabularies trained here: on bytes as GPT-2's, or on characters with byte fallback as the paper's."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

BYTES = 256
RESERVED = 103  # ids that no text has, as in the paper's vocabulary; 0, the first input of a row, is one
COVERAGE = 0.999995  # of all characters; the rest are spelled in bytes
LONGEST = 16  # characters in a piece
# Words with the space before them, digits one by one, and runs of whitespace: pieces do not reach across.
WORDS = r" ?\p{L}[\p{L}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
SMALLEST = {"bpe": BYTES, "bpe_fallback": RESERVED + BYTES + 1}  # ids of each kind's smallest vocabulary


def train_backend(kind: str, texts: Iterable[str], vocab_size: int) -> Any:
    """A `tokenizers.Tokenizer` of a kind in SMALLEST. Counts alone decide it, so the texts' order does not matter.

    A text with too few distinct pairs gives fewer than `vocab_size` ids.
    """
    return {"bpe": _byte_level, "bpe_fallback": _fallback}[kind](texts, vocab_size)


def _byte_level(texts: Iterable[str], vocab_size: int) -> Any:
    """GPT-2's splitting, over bytes; no special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()  # all 256 bytes, so that any text can be encoded
    backend.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    )
    return backend


def _fallback(texts: Iterable[str], vocab_size: int) -> Any:
    """The paper's kind: 103 reserved ids, 256 bytes, then characters and what they merge to; digits stay apart.

    Unlike SentencePiece it leaves the space as it is, so that every text decodes to itself. Holds the texts in memory.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    texts = list(texts)
    characters = _covering(texts)[: vocab_size - RESERVED - BYTES]
    words = pre_tokenizers.Split(Regex(WORDS), behavior="isolated")
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = words
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - RESERVED - BYTES,
        initial_alphabet=characters,
        limit_alphabet=len(characters),  # these and no other: where counts tie, the library's own cut varies
        max_token_length=LONGEST,
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    learned = json.loads(learner.to_str())["model"]
    names = [f"<reserved_{number}>" for number in range(RESERVED)] + [f"<0x{byte:02X}>" for byte in range(BYTES)]
    vocabulary = {name: number for number, name in enumerate(names)}
    # Not added as special tokens: text that spells one of these names is text.
    vocabulary |= {piece: number + len(names) for piece, number in learned["vocab"].items()}
    merges = [tuple(pair) for pair in learned["merges"]]
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True))
    backend.pre_tokenizer = words
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return backend


def _covering(texts: list[str]) -> list[str]:
    """The fewest characters that make up COVERAGE of the texts, the most frequent first."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    left, found = COVERAGE * counts.total(), []
    for character, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if left <= 0:
            break
        found.append(character)
        left -= count
    return found
