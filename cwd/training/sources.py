"""From the configuration to prepared data. Needs no torch, so that a finished run is found without loading it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cwd import schema
from cwd.data.batches import evaluation_rows
from cwd.data.corpora import SPLITS, Corpus, PythonSource, TextFiles
from cwd.data.prepare import prepare
from cwd.data.tokens import TokenData


def load_tokens(config: schema.Config, say: Callable[[str], None]) -> TokenData:
    """The configured text as token files, prepared if they are not there. Raises UserError as
    :func:`cwd.data.prepare.prepare`.
    """
    dataset = config.dataset
    data = prepare(
        _corpus(dataset),
        tokenizer=dataset.tokenizer,
        vocab_size=dataset.vocab_size,
        validation_fraction=dataset.validation_fraction,
        root=Path(config.machine.data),
        progress=say,
    )
    for split in SPLITS:  # said before the run's folder exists
        evaluation_rows(data.tokens(split), 1, config.training.seq_len, split)
    return data


def _corpus(dataset: schema.Dataset) -> Corpus:
    if isinstance(dataset, schema.Text):
        return TextFiles(dataset.files, dataset.field, dataset.separator)
    return PythonSource()
