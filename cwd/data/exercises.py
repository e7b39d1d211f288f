"""A small set of instructions for where there is no other: short, exact, and about text, made by rules from a fixed
list of words.
"""

from __future__ import annotations

import builtins
import keyword
from collections.abc import Callable
from random import Random

COUNT = 2000
WORDS = sorted(word for word in {*keyword.kwlist, *dir(builtins)} if word.isalpha() and len(word) <= 10)

RULES: dict[str, Callable[[list[str]], str]] = {
    "Repeat the words.": " ".join,
    "Give the first word.": lambda words: words[0],
    "Give the last word.": lambda words: words[-1],
    "Turn the order round.": lambda words: " ".join(reversed(words)),
    "Write in capitals.": lambda words: " ".join(words).upper(),
    "Count the words.": lambda words: str(len(words)),
    "Join by commas.": ", ".join,
    "Make a call of it.": lambda words: f"{words[0]}({', '.join(words[1:])})",
}


def exercises() -> list[dict[str, str]]:
    """COUNT examples in Alpaca's form, the same each time."""
    random = Random(0)
    found = []
    for number in range(COUNT):
        instruction = list(RULES)[number % len(RULES)]
        words = random.sample(WORDS, random.randint(2, 5))
        output = RULES[instruction](words)
        found.append({"instruction": instruction, "input": " ".join(words), "output": output})
    return found
