"""From the configuration to prepared data. Needs no torch, so that a finished run is found without loading it."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

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


def load_data(config: schema.Config, say: Callable[[str], None]) -> tuple[Any, dict[str, Any]]:
    """The configured data, and what a run's record says of it.

    Raises:
        UserError: as :func:`load_tokens`, :func:`load_instructions` and the readers of images; a library that they need
            is missing.
    """
    if not isinstance(config.dataset, schema.Dataset):
        from cwd.training.image_sources import load_images  # Pillow is for images only

        images = load_images(config)
        return images, images.description
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
    assert training.seq_len is not None
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
    """The configured text as token files. A small corpus is prepared if it is not there.

    Raises:
        UserError: as :func:`cwd.data.prepare.prepare` and :func:`cwd.data.sets.find_set`, or less than a row of text.
    """
    dataset = config.dataset
    assert isinstance(dataset, schema.Dataset)
    assert config.training.seq_len is not None
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
