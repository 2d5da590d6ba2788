"""A local server that speaks the routes of Ultralytics Platform which a training uses, and fails on demand."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

KEY = "ul_key_of_the_tests"
HANG = "hang"  # a fault: the request is read and never answered
DROP = "drop"  # a fault: the connection is closed without an answer
NONSENSE = "nonsense"  # a fault: a proxy's page with status 200
EVENTS = "/api/webhooks/training/metrics"
UPLOAD = "/api/webhooks/models/upload"

# (event or "upload", "storage", "files", "download"; how often it came before) -> a status, a fault, or None for health
Fault = Callable[[str, int], Any]


@dataclass
class FakePlatform:
    """What the server holds, and what it was sent.

    Attributes:
        models (dict[str, Path]): Weights by "owner/project/model".
        faults (dict[str, Fault]): How it answers, by a run's name or by "owner/project/model"; healthy if absent.
        cancels (dict[str, str]): Event whose answer cancels the run, by the run's name.
        events (list[dict[str, Any]]): Every event that came: its run, its name, its data and the project it names.
        stored (dict[str, bytes]): Uploaded files by run.
        requests (list[str]): Method and path of all requests.
    """

    models: dict[str, Path] = field(default_factory=dict)
    faults: dict[str, Fault] = field(default_factory=dict)
    cancels: dict[str, str] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    stored: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    url: str = ""
    counts: dict[tuple[str, str], int] = field(default_factory=dict)
    closing: threading.Event = field(default_factory=threading.Event)

    def of(self, run: str, event: str) -> list[dict[str, Any]]:
        """Return the data of a run's events of one kind, in the order in which they came."""
        return [e["data"] for e in self.events if (e["run"], e["event"]) == (run, event)]

    def fault(self, name: str, step: str) -> Any:
        """Return what goes wrong with a request, and count it."""
        count = self.counts.get((name, step), 0)
        self.counts[name, step] = count + 1
        return self.faults.get(name, lambda *_: None)(step, count)


class _Handler(BaseHTTPRequestHandler):
    """Routes of one server; `platform` is set by `fake_platform`."""

    platform: FakePlatform
    protocol_version = "HTTP/1.1"

    def log_request(self, *_: Any) -> None:
        """Note a request as it is answered."""
        self.platform.requests.append(f"{self.command} {self.path}")

    def log_message(self, *_: Any) -> None:
        """Be silent."""

    def do_POST(self) -> None:
        """Take an event, or say where to upload to."""
        body = json.loads(self._body())
        # Before there is a model id, a run is known by its name
        run = (body.get("modelId") or "").removeprefix("id-of-") or body.get("name")
        step = "upload" if self.path == UPLOAD else body.get("event")
        assert self.path in {EVENTS, UPLOAD}, self.path
        if self._authorized() and not self._faulty(run, step):
            if self.path == UPLOAD:
                self._json({"uploadUrl": f"{self.platform.url}/storage/{run}", "gcsPath": f"gs://{run}/best.pt"})
                return
            self.platform.events.append({"run": run, "event": step, "data": body["data"], "to": body.get("project")})
            answer = {"cancelled": True} if self.platform.cancels.get(run) == step else {}
            if step == "training_started":
                answer |= {"modelId": f"id-of-{run}", "runId": 1, "modelUrl": f"{self.platform.url}/{run}"}
            self._json(answer)

    def do_PUT(self) -> None:
        """Store a file."""
        run = self.path.rpartition("/")[2]
        content = self._body()
        if not self._faulty(run, "storage"):
            self.platform.stored[run] = content
            self._json({})

    def do_GET(self) -> None:
        """Say where a model's weights are, or send them."""
        route, _, name = self.path.removeprefix("/api/models/").removesuffix("/files").partition("/")
        if self.path.startswith("/api/models/"):
            name = f"{route}/{name}"
            if not self._authorized() or self._faulty(name, "files"):
                return
            if name not in self.platform.models:
                self._json({"error": "Model not found"}, 404)
                return
            self._json({"files": [{"downloadUrl": f"{self.platform.url}/download/{name}/best.pt?signature=1"}]})
        else:
            name = self.path.removeprefix("/download/").partition("/best.pt")[0]
            if not self._faulty(name, "download"):
                self._send(self.platform.models[name].read_bytes(), "application/octet-stream")

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _authorized(self) -> bool:
        """Return whether the request has the API key; refuse it otherwise."""
        if self.headers.get("Authorization") == f"Bearer {KEY}":
            return True
        self._json({"error": "Invalid API key"}, 401)
        return False

    def _faulty(self, name: str, step: str) -> bool:
        """Return whether the request goes wrong as was asked for."""
        fault = self.platform.fault(name, step)
        if isinstance(fault, int):
            self._json({"error": "as asked for"}, fault)
        elif fault == NONSENSE:
            self._send(b"<html>a proxy's page</html>", "text/html")
        elif fault in {HANG, DROP}:
            if fault == HANG:
                self.platform.closing.wait()
            self.close_connection = True
        return fault is not None

    def _json(self, content: Any, status: int = 200) -> None:
        self._send(json.dumps(content).encode(), "application/json", status)

    def _send(self, content: bytes, kind: str, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Retry-After", "0")  # clients that wait between tries need not
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def fake_platform() -> Iterator[FakePlatform]:
    """Run a server on a free local port."""
    platform = FakePlatform()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"platform": platform}))
    server.daemon_threads = True
    platform.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield platform
    finally:
        platform.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()
