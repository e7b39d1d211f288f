"""From the configuration to prepared data. Needs no torch, so that a finished run is found without loading it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from cwd import schema
from cwd.data.batches import evaluation_rows
from cwd.data.corpora import SPLITS, Corpus, PythonSource, TextFiles
from cwd.data.tokens import TokenData, prepare


def load_data(config: schema.Config, say: Callable[[str], None]) -> tuple[Any, dict[str, Any]]:
    """The configured data, and what a run's record says of it.

    Raises:
        UserError: as :func:`load_tokens` and :func:`load_instructions`.
    """
    if isinstance(config.dataset, schema.Instructions):
        return load_instructions(config, say)
    data = load_tokens(config, say)
    tokens = data.manifest["splits"]
    return data, {"fingerprint": data.fingerprint, "tokens": tokens, "vocab_size": data.vocab_size}


def load_instructions(config: schema.Config, say: Callable[[str], None]) -> tuple[Any, dict[str, Any]]:
    """The configured instructions as rows for the pretrained model, with that model's source. Where the configuration
    names a run by the first digits of its key, it names it by its key afterwards.

    Raises:
        UserError: as :func:`cwd.data.instructions.prepare_instructions`, :func:`cwd.training.pretrained.find_source`.
    """
    from cwd.data.instructions import prepare_instructions
    from cwd.training.pretrained import find_source

    dataset, model, training = config.dataset, config.model, config.training
    assert isinstance(dataset, schema.Instructions)
    assert isinstance(model, schema.Pretrained)
    source = find_source(model.source, Path(config.machine.runs), Path(config.machine.data))
    model.source = source.name
    data = prepare_instructions(
        dataset.files,
        source.tokenizer,
        template=dataset.template,
        end=source.end,
        seq_len=training.seq_len,
        packing=dataset.packing,
        validation_fraction=dataset.validation_fraction,
        model=source.fingerprint,
        say=say,
    )
    about = {"fingerprint": data.fingerprint, "examples": data.counts, "model": source.fingerprint}
    return (data, source), {**about, "heldout": source.heldout}


def load_tokens(config: schema.Config, say: Callable[[str], None]) -> TokenData:
    """The configured text as token files, prepared if they are not there. Raises UserError as
    :func:`cwd.data.tokens.prepare`.
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
