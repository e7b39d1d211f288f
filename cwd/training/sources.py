"""From the configuration to prepared data. Needs no torch, so that a finished run is found without loading it."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import yaml

from cwd import schema
from cwd.data.batches import evaluation_rows
from cwd.data.building import Show, prepare_set
from cwd.data.corpora import SPLITS, Corpus, PythonSource, TextFiles
from cwd.data.prepare import prepare
from cwd.data.published import Published
from cwd.data.sets import Request, find_set
from cwd.data.tokens import TokenData

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "dataset"


def load_tokens(config: schema.Config, say: Callable[[str], None]) -> TokenData:
    """The configured text as token files. A small corpus is prepared if it is not there.

    Raises:
        UserError: as :func:`cwd.data.prepare.prepare` and :func:`cwd.data.sets.find_set`, or less than a row of text.
    """
    dataset = config.dataset
    if isinstance(dataset, schema.Published):
        data = find_set(request_of(config, dataset), _command(config))
    else:
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


def prepare_tokens(config: schema.Config, processes: int | None, say: Callable[[str], None], show: Show) -> TokenData:
    """The configured text, prepared: what :func:`load_tokens` will find.

    Args:
        processes, say, show: as :func:`cwd.data.building.prepare_set` takes them.
    """
    dataset = config.dataset
    if not isinstance(dataset, schema.Published):
        return load_tokens(config, say)
    return prepare_set(request_of(config, dataset), source=dataset.source, processes=processes, say=say, show=show)


def _corpus(dataset: schema.Dataset) -> Corpus:
    if isinstance(dataset, schema.Text):
        return TextFiles(dataset.files, dataset.field, dataset.separator)
    return PythonSource()


def request_of(config: schema.Config, dataset: schema.Published) -> Request:
    """Which prepared set a configuration asks for."""
    names = ("name", "repository", "revision", "train", "validation", "urls", "field", "shards")
    return Request(
        Published(**{name: getattr(dataset, name) for name in names}),
        tokenizer=dataset.tokenizer,
        vocab_size=dataset.vocab_size,
        validation_fraction=dataset.validation_fraction,
        root=Path(config.machine.data),
        tokenizer_file=dataset.tokenizer_file,
        place=dataset.folder,
    )


def _command(config: schema.Config) -> str:
    """The command that prepares what a configuration asks for: the values that are not its dataset file's."""
    values = asdict(config.dataset)
    usual = yaml.safe_load((CONFIGS / f"{config.dataset.name}.yaml").read_text())
    words = [f"dataset.{name}={_word(value)}" for name, value in values.items() if value != usual[name]]
    words += [f"machine.data={config.machine.data}"] if config.machine.data != "data" else []
    return shlex.join(["python", "scripts/prepare_data.py", f"dataset={config.dataset.name}", *words])


def _word(value: object) -> str:
    return "null" if value is None else str(value)
