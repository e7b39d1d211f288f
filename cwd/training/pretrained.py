"""The model that a fine-tuning goes on from: where it is, what it is, and its tokenizer."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cwd.data.export import as_hugging_face
from cwd.data.prepared import find_data
from cwd.errors import UserError
from cwd.files import read_json, sha256_of
from cwd.runs import Record, all_records

WANTED = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]  # of a repository on the hub: nothing that runs


@dataclass(frozen=True)
class Source:
    """A folder that transformers loads. ``name`` is the run's key, or what the user called it; ``heldout`` the
    fingerprint of the text that it was trained on, if it is a run of ours.
    """

    name: str
    folder: Path
    tokenizer: Any
    heldout: str | None = None

    @property
    def end(self) -> int | None:
        """The id that ends an answer: the tokenizer's end of text, or else what the model knows as a start."""
        if self.tokenizer.eos_token_id is not None:
            return self.tokenizer.eos_token_id
        return (read_json(self.folder / "config.json") or {}).get("bos_token_id")

    @property
    def fingerprint(self) -> str:
        """Of the weights and the configuration."""
        digest = hashlib.sha256()
        for path in [self.folder / "config.json", *sorted(self.folder.glob("*.safetensors"))]:
            digest.update(sha256_of(path).encode())
        return digest.hexdigest()


def find_source(name: str, runs: Path, data: Path) -> Source:
    """The model that `name` stands for: a finished run under `runs` (its key, or the key's first digits), a folder, or
    a repository on the hub.

    Raises:
        UserError: none of them, or it holds no safetensors or no tokenizer.
    """
    matches = [record for record in all_records(runs) if record.key.startswith(name)]
    if len(matches) > 1:
        raise UserError(f"model.source={name}: {len(matches)} runs begin with it: {', '.join(m.key for m in matches)}")
    if matches:
        return _of_run(matches[0], data)
    folder = Path(name).expanduser()
    if not folder.is_dir():
        folder = _download(name, runs)
    _check_weights(folder, name)
    return Source(name, folder, _tokenizer(folder, name))


def _of_run(record: Record, data: Path) -> Source:
    if not record.summary:
        raise UserError(f"model.source={record.key}: the run is {record.status['state']}, a finished one is needed")
    folder, about = record.folder / "model", record.description["data"]
    _check_weights(folder, record.key)
    heldout = about.get("heldout") or about["fingerprint"]
    if (folder / "tokenizer_config.json").exists():
        return Source(record.key, folder, _tokenizer(folder, record.key), heldout)
    text = find_data(data, heldout)  # a run from before tokenizers lay beside the weights
    if text is None:
        raise UserError(f"model.source={record.key}: no tokenizer beside its weights, and its text is not in {data}/")
    return Source(record.key, folder, as_hugging_face(text.tokenizer()), heldout)


def _download(name: str, runs: Path) -> Path:
    from huggingface_hub import snapshot_download

    for local in (True, False):  # the cache first: it does not change from one run to the next
        try:
            folder = Path(snapshot_download(name, allow_patterns=WANTED, local_files_only=local))
        except (OSError, ValueError) as error:
            reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            continue
        # A cache may hold a part, which other programs asked for: a tokenizer, say.
        if not local or (not _lacking(folder) and (folder / "tokenizer_config.json").exists()):
            return folder
    raise UserError(f"model.source={name}: no run in {runs}, no folder, and not to be had from the hub ({reason})")


def _check_weights(folder: Path, name: str) -> None:
    if missing := _lacking(folder):
        raise UserError(
            f"model.source={name}: {folder} holds no config.json with .safetensors ({missing} is not there); other "
            "weights are not loaded"
        )


def _lacking(folder: Path) -> str:
    """The first file that a model's folder lacks, an empty string where it has its configuration and all weights."""
    index = read_json(folder / "model.safetensors.index.json")
    whole = index is None or (folder / "model.safetensors").exists()
    weights = ["model.safetensors"] if whole else sorted(set(index["weight_map"].values()))
    return next((name for name in ["config.json", *weights] if not (folder / name).exists()), "")


def _tokenizer(folder: Path, name: str) -> Any:
    from transformers import AutoTokenizer
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()  # ours are not registered without torch, of which a tokenizer has no need
    try:
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"model.source={name}: {folder} holds no tokenizer that transformers loads") from error
    finally:
        logging.set_verbosity(before)
