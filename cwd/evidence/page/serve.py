"""Serves the page and the state of its sweep on this machine alone: two addresses, read only, nothing from the disk."""

from __future__ import annotations

import errno
import json
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from cwd.errors import UserError
from cwd.evidence.render import finite

ADDRESS = "127.0.0.1"
NAMES = (ADDRESS, "localhost")  # other Host headers come from pages of other sites (DNS rebinding)
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}


def make_server(
    page: Callable[[], str], progress: Callable[[], dict[str, Any]], port: int = 8000
) -> ThreadingHTTPServer:
    """A server of ``/``, what `page` returns, and ``/progress.json``, what `progress` returns; one call at a time.

    Args:
        page: the whole page, as HTML.
        progress: plain data; numbers that are not finite become null.
        port: 0 takes a free one; the server's ``server_port`` says which.

    Raises:
        UserError: the port cannot be had.
    """
    turn = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        """Answers GET, for this machine's names, at the two addresses; 403, 404 or 501 to all else."""

        def do_GET(self) -> None:
            """One of the two, whole."""
            if self.headers.get("Host") not in {f"{name}:{self.server.server_port}" for name in NAMES}:  # type: ignore[attr-defined]
                self.send_error(HTTPStatus.FORBIDDEN, "not a name of this server")
            elif self.path == "/":
                with turn:
                    content = page().encode()
                self._answer(content, "text/html; charset=utf-8")
            elif self.path == "/progress.json":
                with turn:
                    content = json.dumps(finite(progress()), allow_nan=False).encode()
                self._answer(content, "application/json")
            else:
                self.send_error(HTTPStatus.NOT_FOUND)

        def _answer(self, content: bytes, kind: str) -> None:
            self.send_response(HTTPStatus.OK)
            for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **HEADERS}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *arguments: Any) -> None:
            """Nothing: the terminal stays with the sweep."""

    try:
        return ThreadingHTTPServer((ADDRESS, port), Handler)
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        raise UserError(f"port {port}: cannot be had ({error.strerror}); give another, as in PORT=8001") from error
