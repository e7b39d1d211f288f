"""From the configuration to prepared data. Needs no torch, so that a finished run is found without loading it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cwd import config as schema
from cwd.data.corpora import Corpus, PythonSource, TextFiles
from cwd.data.tokens import TokenData, prepare


def load_tokens(config: schema.Config, say: Callable[[str], None]) -> TokenData:
    """The configured text as token files, prepared if they are not there. Raises UserError as :func:`cwd.data.tokens.prepare`."""
    dataset = config.dataset
    return prepare(
        _corpus(dataset),
        tokenizer=dataset.tokenizer,
        vocab_size=dataset.vocab_size,
        validation_fraction=dataset.validation_fraction,
        root=Path(config.machine.data),
        progress=say,
    )


def _corpus(dataset: schema.Dataset) -> Corpus:
    if isinstance(dataset, schema.Text):
        return TextFiles(dataset.files, dataset.field, dataset.separator)
    return PythonSource()
