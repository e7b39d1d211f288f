"""The hub's own client against a server on this machine that answers as the hub does."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cwd.data.sets import find_set
from cwd.data.tokens import TokenData, open_folder
from cwd.sweeps import compose_config
from cwd.training.sources import request_of
from tests.data_helpers import REPOSITORY
from tests.published_helpers import C4, prepared, request_for, write_corpus

COMMIT = "0" * 40


class Hub(BaseHTTPRequestHandler):
    """Lists and serves the files below a folder, as the repository of any name."""

    folder: Path
    asked: list[str]

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = self.path.partition("?")[0]
        self.asked.append(f"{self.command} {path}")
        if path.startswith("/api/datasets/") and "/tree/" in path:
            content, kind = json.dumps(self._listing(path.partition("/tree/")[2].partition("/")[2])).encode(), "json"
        else:
            name = (
                path.split("/resolve/")[-1].partition("/")[2] if "/resolve/" in path else path.removeprefix("/other/")
            )
            file = self.folder / name
            if not file.is_file():
                self.send_error(404)
                return
            content, kind = file.read_bytes(), "octet-stream"
        self.send_response(200)
        self.send_header("Content-Type", f"application/{kind}")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.end_headers()
        if body:
            self.wfile.write(content)

    def _listing(self, inside: str) -> list[dict[str, Any]]:
        found = []
        for path in sorted((self.folder / inside).rglob("*")):
            if path.is_file():
                digest, size = hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size
                lfs = {"oid": digest, "size": size, "pointerSize": 134}
                name = path.relative_to(self.folder).as_posix()
                found.append({"type": "file", "oid": digest[:40], "size": size, "path": name, "lfs": lfs})
        return found

    def log_message(self, *unused: Any) -> None:
        """Nothing: the tests print enough."""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[str, type[Hub]]]:
    handler = type("Served", (Hub,), {"folder": tmp_path / "hub", "asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", handler
        server.shutdown()


def prepare(tmp_path: Path, endpoint: str, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **{name: value for name, value in os.environ.items() if "proxy" not in name.lower()},
        "PYTHONPATH": str(REPOSITORY),
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(tmp_path / "home"),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
    }
    words = (*words, "dataset.tokenizer=bytes", f"machine.data={tmp_path / 'data'}", "--processes", "1")
    command = [sys.executable, str(REPOSITORY / "scripts/prepare_data.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)


def found(tmp_path: Path, *words: str) -> TokenData:
    words = (*words, "dataset.tokenizer=bytes", f"machine.data={tmp_path / 'data'}")
    config = compose_config(list(words))
    return find_set(request_of(config, config.dataset), "")  # type: ignore[arg-type]


def test_c4_comes_from_the_hub_and_is_what_local_files_give(tmp_path: Path, hub: tuple[str, type[Hub]]) -> None:
    write_corpus("c4", tmp_path / "hub")
    local = prepared(request_for(C4, tmp_path / "local"), tmp_path / "hub")
    ended = prepare(tmp_path, hub[0], "dataset=c4")
    assert ended.returncode == 0, ended.stderr
    data = found(tmp_path, "dataset=c4")
    assert data.fingerprint == local.fingerprint
    assert not list(data.folder.rglob("*.gz"))  # what was downloaded is gone
    gets = [line for line in hub[1].asked if line.startswith("GET /datasets/")]
    assert len(gets) == len(set(gets)) == 8  # each file once
    assert all(f"/resolve/{compose_config(['dataset=c4']).dataset.revision}/en/" in line for line in gets)  # type: ignore[attr-defined]


def test_dolma_comes_from_where_its_list_says(tmp_path: Path, hub: tuple[str, type[Hub]]) -> None:
    train, _ = write_corpus("dolma", tmp_path / "hub")
    names = sorted(path.relative_to(tmp_path / "hub").as_posix() for path in (tmp_path / "hub").rglob("*.gz"))
    (tmp_path / "hub" / "urls").mkdir()
    (tmp_path / "hub" / "urls" / "v1_7.txt").write_text("".join(f"{hub[0]}/other/{name}\n" for name in names))
    ended = prepare(tmp_path, hub[0], "dataset=dolma", "dataset.validation_fraction=0.2")
    assert ended.returncode == 0, ended.stderr
    data = found(tmp_path, "dataset=dolma", "dataset.validation_fraction=0.2")
    splits = data.manifest["splits"].values()
    assert sum(one["documents"] for one in splits) == len([text for text in train if text.strip()])
    assert sum(one["bytes"] for one in splits) == len("".join(text for text in train if text.strip()).encode())
    assert open_folder(data.folder)[0] is not None


def test_a_hub_that_has_not_the_files_is_one_line(tmp_path: Path, hub: tuple[str, type[Hub]]) -> None:
    (tmp_path / "hub").mkdir()
    for name, message in (("c4", "has no file en/c4-train"), ("dolma", "on the Hugging Face hub: ")):
        ended = prepare(tmp_path, hub[0], f"dataset={name}")
        assert ended.returncode == 2
        assert ended.stderr.startswith("prepare_data.py: allenai/")
        assert message in ended.stderr
        assert ended.stderr.count("\n") == 1
