"""The page of a process: /metrics for Prometheus, /healthz and /readyz for whatever keeps processes alive.

Served from daemon threads by the standard library's HTTP server: it needs no event loop, so it answers while the
worker's own loop is busy, and that is when one wants to look. Nothing here changes anything; it listens on loopback
unless told otherwise.
"""

from __future__ import annotations

import errno
import logging
import socket
import socketserver
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

from attrs import frozen

from taskq.errors import ConfigError
from taskq.metrics import CONTENT_TYPE, Snapshot, render

_log = logging.getLogger(__name__)

REQUESTS_MAX = 16
"""Answered at once; a further connection is closed. A scraper, a probe and a person need three."""

REQUEST_SECONDS_MAX = 10
"""A connection that says nothing for this long is closed."""


@frozen
class Health:
    """Well, unless there are reasons why not."""

    reasons: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.reasons


class Server:
    """A page that is being served, until `close`."""

    def __init__(self, listener: _Listener, host: str) -> None:
        self._listener = listener
        self.port = listener.server_port
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self.port}/metrics"
        self._thread = threading.Thread(
            target=listener.serve_forever, kwargs={"poll_interval": 0.1}, name="taskq-http", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop listening. Idempotent; takes up to 0.1 s."""
        self._listener.shutdown()
        self._listener.server_close()
        self._thread.join()


def serve(
    host: str,
    port: int,
    metrics_snapshot: Callable[[], Snapshot],
    health: Callable[[], Health],
    ready: Callable[[], Health],
    *,
    advice: str = "--metrics-port 0 takes any free port, --no-metrics none",
) -> Server:
    """Serve the page on `host` and `port` (0: any free one). The callables run in the threads of requests.

    Raises ConfigError with `advice` if that address can't be had.
    """
    pages = {
        "/metrics": lambda: (HTTPStatus.OK, CONTENT_TYPE, render(metrics_snapshot())),
        "/healthz": lambda: _state(health()),
        "/readyz": lambda: _state(ready()),
    }
    try:
        return Server(_Listener(host, port, pages), host)
    except OSError as error:
        why = "another process has it" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
        raise ConfigError(f"can't serve metrics on {host} port {port}: {why}; {advice}") from error


_Answer = tuple[HTTPStatus, str, bytes]
_Pages = dict[str, Callable[[], _Answer]]


def _state(health: Health) -> _Answer:
    status = HTTPStatus.OK if health.ok else HTTPStatus.SERVICE_UNAVAILABLE
    return _text(status, "\n".join(health.reasons) or "ok")


def _text(status: HTTPStatus, text: str) -> _Answer:
    return status, "text/plain; charset=utf-8", f"{text}\n".encode()


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, host: str, port: int, pages: _Pages) -> None:
        self.pages = pages
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._slots = threading.Semaphore(REQUESTS_MAX)
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        # Not HTTPServer's own: it asks DNS for the host's full name, which can take seconds.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.socket.getsockname()[:2]

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._slots.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread can be started
            self._slots.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A peer that goes away in the middle is nobody's error."""
        _log.debug("a connection to the metrics page broke", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    timeout = REQUEST_SECONDS_MAX

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        pages = cast("_Listener", self.server).pages
        page = pages.get(path)
        if page is None:
            here = HTTPStatus.OK if path == "/" else HTTPStatus.NOT_FOUND
            status, content_type, body = _text(here, "\n".join(pages))
        else:
            try:
                status, content_type, body = page()
            except Exception as error:
                _log.exception("%s could not be answered", path)
                status, content_type, body = _text(HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(error).__name__}: {error}")
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815 - the base class looks for this name

    def version_string(self) -> str:
        return "taskq"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        _log.debug(format, *args)
