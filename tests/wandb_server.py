"""A server that takes what wandb sends: enough of its interface for `wandb.init` and `wandb sync`."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

KEY = "0" * 40
PROJECT = {"id": "P", "name": "p", "entity": {"id": "E", "name": "me"}}


class Server(ThreadingHTTPServer):
    """``runs``: by id, what was said of it, in order; ``history``: by id, its rows as they stand."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.runs: dict[str, list[dict[str, Any]]] = {}
        self.history: dict[str, list[dict[str, Any]]] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no error."""


@contextmanager
def wandb_server() -> Iterator[Server]:
    server = Server()
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *unused: Any) -> None:
        pass

    def do_PUT(self) -> None:
        self._body()
        self._answer({})

    def do_POST(self) -> None:
        body = self._body()
        if "graphql" in self.path:
            self._answer({"data": self._graphql(body["operationName"], body.get("variables") or {})})
        elif "file_stream" in self.path:
            rows = (body.get("files") or {}).get("wandb-history.jsonl")
            if rows:
                history = self.server.history.setdefault(self.path.split("/")[-2], [])
                history[rows["offset"] :] = map(json.loads, rows["content"])
            self._answer({"exitcode": None, "limits": {}})
        else:
            self._answer({})

    def _graphql(self, operation: str, values: dict[str, Any]) -> dict[str, Any]:
        name = values.get("name")
        if operation == "UpsertBucket":
            known = self.server.runs.setdefault(name, [])
            known.append(values)
            lines = len(self.server.history.get(name, []))
            bucket = {"id": name, "name": name, "historyLineCount": lines, "project": PROJECT}
            return {"upsertBucket": {"bucket": bucket, "inserted": len(known) == 1}}
        if operation == "RunResumeStatus":
            return {"model": {**PROJECT, "bucket": self._known(name)}}
        if operation == "CreateRunFiles":
            files = [{"name": file, "uploadUrl": f"{self.server.url}/file/{file}"} for file in values["files"]]
            return {"createRunFiles": {"runID": values["run"], "uploadHeaders": [], "files": files}}
        if operation == "ServerFeaturesQuery":
            return {"serverInfo": {"features": []}}
        return {}

    def _known(self, name: str) -> dict[str, Any] | None:
        history = self.server.history.get(name)
        if not history:
            return None
        last = json.dumps(history[-1])
        counts = {"historyLineCount": len(history), "eventsLineCount": 0, "logLineCount": 0}
        texts = {"historyTail": json.dumps([last]), "eventsTail": "[]", "summaryMetrics": last, "config": "{}"}
        return {"id": name, "name": name, **counts, **texts, "tags": [], "createdAt": "2026-01-01T00:00:00Z"}

    def _body(self) -> Any:
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Content-Encoding") == "gzip":
            raw = gzip.decompress(raw)
        try:
            return json.loads(raw)
        except ValueError:
            return {}

    def _answer(self, content: Any) -> None:
        text = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
