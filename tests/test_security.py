"""Nothing that is loaded can run code, and what is secret stands nowhere. The hostile checkpoints are shown to run code
where they are loaded as they would like to be.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch.distributed import checkpoint as dcp

from cwd.data.tokenizers import load_tokenizer
from cwd.errors import UserError
from cwd.sweeps import write_cells
from cwd.training.pretrained import find_source
from cwd.training.tasks.finetune import FinetuneTask
from tests.conftest import Ended
from tests.test_faults import OVERRIDES, crash
from tests.training_helpers import train


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.mkdir, (str(self.folder),)


@pytest.fixture
def harm(tmp_path: Path) -> Path:
    """What a payload leaves; no test may leave it, but for showing that it could."""
    return tmp_path / "harm"


def test_a_hostile_checkpoint_with_a_right_checksum_is_refused_in_one_line(tmp_path, harm, monkeypatch):
    record = crash(tmp_path, monkeypatch)
    before, newest = sorted((record.folder / "checkpoints").iterdir())
    torch.save({"step": 8, "weights_hash": Payload(harm)}, newest / "state.pt")
    sha256 = hashlib.sha256((newest / "state.pt").read_bytes()).hexdigest()
    (newest / "checksum.json").write_text(json.dumps({"step": 8, "sha256": sha256}))
    with pytest.raises(UserError, match=rf"^checkpoint {newest}: state.pt holds more than tensors") as caught:
        train(tmp_path, *OVERRIDES)
    assert "\n" not in str(caught.value)
    assert not harm.exists()
    assert before.is_dir()
    assert record.status["state"] == "failed"
    assert str(newest) in record.status["message"]
    torch.load(newest / "state.pt", weights_only=False)  # here it does
    assert harm.exists()


def test_the_metadata_of_a_divided_checkpoint_is_no_pickle(tmp_path, harm):
    save_file({"a": torch.arange(4.0)}, tmp_path / "a.safetensors")
    (tmp_path / ".metadata").write_bytes(pickle.dumps(Payload(harm)))
    found = {"a": torch.zeros(4)}
    dcp.load(found, storage_reader=dcp.HuggingFaceStorageReader(str(tmp_path)), no_dist=True)
    assert found["a"].tolist() == [0, 1, 2, 3]
    assert not harm.exists()
    with pytest.raises(AttributeError):
        dcp.FileSystemReader(tmp_path).read_metadata()  # torch's own format would have run it
    assert harm.exists()


CALL = "{_target_: os.mkdir, path: HARM}"
FILES = {
    "callback": f"# @package _global_\nhydra: {{callbacks: {{x: {CALL}}}}}\n",
    "launcher": f"# @package _global_\nhydra: {{launcher: {CALL}}}\n",
    "value": f"# @package _global_\noptimizer: {{groups: [{CALL}]}}\n",
    "spelled": '# @package _global_\nhydra: {callbacks: {x: {"\\x5ftarget_": os.mkdir, path: HARM}}}\n',
    "tag": "# @package _global_\nseed: !!python/object/apply:os.mkdir [HARM]\n",
}


@pytest.mark.parametrize("kind", FILES)
def test_a_hostile_configuration_file_is_refused_in_one_line(
    kind: str, train_py: Callable[..., Ended], tmp_path: Path, harm: Path
) -> None:
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    path = tmp_path / "mine" / "experiment" / "evil.yaml"
    path.write_text(FILES[kind].replace("HARM", str(harm)))
    ended = train_py("--config-dir", str(tmp_path / "mine"), "experiment=evil", "scale=smoke")
    assert (ended.status, ended.configs, ended.out) == (2, [], "")
    assert ended.err.count("\n") == 1
    assert str(path) in ended.err or "python/object" in ended.err
    assert not harm.exists()


def test_a_configuration_file_of_ones_own_is_taken(train_py: Callable[..., Ended], tmp_path: Path) -> None:
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "good.yaml").write_text(
        '# @package _global_\nseed: 3\ntracker: {group: "\\t"}\n'
    )
    ended = train_py("--config-dir", str(tmp_path / "mine"), "experiment=good", "scale=smoke")
    assert [config.seed for config in ended.configs] == [3]


def test_a_model_whose_weights_are_a_pickle_is_refused(tmp_path, harm):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "simply"}')
    torch.save(Payload(harm), folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="other weights are not loaded"):
        find_source(str(folder), tmp_path / "runs", tmp_path / "data")
    assert not harm.exists()


def evil_folder(folder: Path, harm: Path) -> Path:
    """A model and a tokenizer that bring code along, as a repository on the hub may."""
    folder.mkdir()
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(harm)!r})\n")
    places = {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.EvilModel"}
    (folder / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": places}))
    tokenizer = {"tokenizer_class": "EvilTokenizer", "auto_map": {"AutoTokenizer": ["evil.EvilTokenizer", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    save_file({"a": torch.zeros(1)}, folder / "model.safetensors")
    return folder


def test_a_tokenizer_that_brings_code_is_refused(tmp_path, harm):
    folder = evil_folder(tmp_path / "model", harm)
    with pytest.raises((UserError, ValueError), match=r"tokenizer|trust_remote_code"):
        load_tokenizer(str(folder), None, None)
    with pytest.raises(UserError, match="holds no tokenizer that transformers loads"):
        find_source(str(folder), tmp_path / "runs", tmp_path / "data")
    assert not harm.exists()


def test_a_model_that_brings_code_is_refused(tmp_path, harm):
    folder = evil_folder(tmp_path / "model", harm)
    task: Any = SimpleNamespace(_source=SimpleNamespace(folder=folder), _model=SimpleNamespace(adapter="none"))
    with pytest.raises(ValueError, match="trust_remote_code"):
        FinetuneTask.build_model(task)
    assert not harm.exists()


def test_what_is_secret_in_the_environment_stands_nowhere(tmp_path, monkeypatch, capfd, laptop):
    secrets = {name: f"{number}0123456789abcdef0123456789abcdef0123456" for number, name in enumerate(SECRETS)}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_MODE", "offline")
    record = train(tmp_path, "tracker=wandb", "machine.progress=lines").record
    write_cells([laptop], tmp_path / "runs")
    files = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert {"config.json", "environment.jsonl", "metrics.jsonl"} <= {path.name for path in files}
    assert [path for path in files if path.suffix == ".wandb"]
    text = "".join(capfd.readouterr()).encode()
    assert record.key.encode() in text
    for value in secrets.values():
        assert value.encode() not in text
        assert [path for path in files if value.encode() in path.read_bytes()] == []


SECRETS = ("WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY")
