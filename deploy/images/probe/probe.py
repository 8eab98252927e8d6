"""A model server for tests: its environment and its inputs say how it misbehaves.

It needs only the standard library, so the image is the base image and this file. The README
one folder up lists every variable and input. `GET /stats` shows its counters.
"""

import gzip
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from socketserver import ThreadingMixIn
from types import FrameType
from typing import IO, NoReturn

NEVER = float("inf")
_PAGE = 4096
_STOPPED = 128 + signal.SIGTERM
FLOODS = {
    "continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 500),
    "headers": (b"HTTP/1.1 200 OK\r\n", b"X-Flood: x\r\n" * 500),
    "body": (b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 65_536),
    "chunks": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n" * 2_000),
    "trickle": (b"HTTP/1.1 200 OK\r\n\r\n", b"x"),
    "bomb": (
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n",
        gzip.compress(bytes(1 << 20)),
    ),
}
"""How each kind of endless answer begins, and the bytes that it repeats."""
TRICKLE_PAUSE_S = 0.001


class Settings:
    """The environment, as values; seconds may be `inf`, which means never."""

    def __init__(self, env: Mapping[str, str], mode: str | None = None) -> None:
        self.mode = mode or env.get("PROBE_MODE", "http")
        self.model = env.get("PROBE_MODEL", "probe")
        self.port = int(env.get("PROBE_PORT", "8080"))
        self.tag = env.get("PROBE_TAG", "")
        self.alive_seconds = float(env.get("PROBE_ALIVE_SECONDS", "0"))
        self.start_exit = _optional_int(env.get("PROBE_START_EXIT"))
        self.load_seconds = float(env.get("PROBE_LOAD_SECONDS", "0"))
        self.load_exit = _optional_int(env.get("PROBE_LOAD_EXIT"))
        self.load_status = int(env.get("PROBE_LOAD_STATUS", "200"))
        self.ready_seconds = float(env.get("PROBE_READY_SECONDS", "0"))
        self.hold_bytes = int(env.get("PROBE_HOLD_BYTES", "0"))
        self.keeps = env.get("PROBE_KEEPS") == "1"
        self.redirect = env.get("PROBE_REDIRECT")
        self.redirect_on = env.get("PROBE_REDIRECT_ON", "infer").split(",")
        self.ignore_sigterm = env.get("PROBE_IGNORE_SIGTERM") == "1"
        self.threads = env.get("PROBE_THREADS") != "1"
        self.listen = env.get("PROBE_LISTEN", "0.0.0.0")  # noqa: S104 - a container's own network
        self.no_repository = _optional_int(env.get("PROBE_NO_REPOSITORY"))
        self.self_load_seconds = float(env.get("PROBE_SELF_LOAD_SECONDS", "inf"))
        self.encoding = env.get("PROBE_ENCODING")
        self.encoding_on = env.get("PROBE_ENCODING_ON", "infer").split(",")
        self.idle_seconds = float(env.get("PROBE_IDLE_SECONDS", "inf"))
        self.early = env.get("PROBE_EARLY") == "1"
        self.collector = env.get("MODELYARD_COLLECTOR")
        self.dataset = env.get("PROBE_DATASET", "/data")
        self.batch_seconds = float(env.get("PROBE_BATCH_SECONDS", "0"))
        self.batch_exit = int(env.get("PROBE_BATCH_EXIT", "0"))
        self.batch_result = env.get("PROBE_BATCH_RESULT")
        self.batch_output = env.get("PROBE_BATCH_OUTPUT")
        self.batch_bytes = int(env.get("PROBE_BATCH_BYTES", "0"))


class Collector:
    """Reports to a TCP collector, one JSON object a line, that this container runs.

    The fault tests check invariant I2 with it. If no collector answers, the lines are dropped.
    """

    def __init__(self, address: str | None, tag: str) -> None:
        self._tag = tag
        self._lock = threading.Lock()
        self._stream: IO[str] | None = None
        if address:
            host, _, port = address.rpartition(":")
            try:
                connection = socket.create_connection((host, int(port)), timeout=5)
                self._stream = connection.makefile("w", encoding="utf-8")
            except OSError as error:
                print(f"no collector: {error}", file=sys.stderr)

    def say(self, event: str, **more: object) -> None:
        # Called from the signal handler too, which may have interrupted a holder of the lock.
        if self._stream is None or not self._lock.acquire(timeout=1):
            return
        line = {"event": event, "container": socket.gethostname(), "tag": self._tag, **more}
        try:
            print(json.dumps(line), file=self._stream, flush=True)
        except OSError:
            self._stream = None
        finally:
            self._lock.release()

    def tick(self) -> None:
        """Send `tick` each second until the process or the collector ends."""
        while self._stream is not None:
            time.sleep(1)
            self.say("tick")


class Model:
    """The simulated model: whether it is in memory, and how often that changed."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._changing = threading.Lock()
        self._counting = threading.Lock()
        self._held = b""
        self._ready_at = NEVER
        self.loaded = False
        self.counts = {
            "load_calls": 0,
            "loads": 0,
            "unload_calls": 0,
            "unloads": 0,
            "unloads_while_running": 0,
            "infers": 0,
            "running": 0,
            "most_running": 0,
        }

    def count(self, name: str, step: int = 1) -> None:
        with self._counting:
            self.counts[name] += step
            self.counts["most_running"] = max(self.counts["most_running"], self.counts["running"])

    def load(self) -> None:
        self.count("load_calls")
        with self._changing:
            if self.loaded:
                return
            wait(self._settings.load_seconds)
            if self._settings.load_exit is not None:
                os._exit(self._settings.load_exit)
            # Each page is written, because the kernel allocates memory only when it is written.
            self._held = b"\x01" * self._settings.hold_bytes
            self._ready_at = time.monotonic() + self._settings.ready_seconds
            self.loaded = True
            self.count("loads")

    def unload(self) -> None:
        self.count("unload_calls")
        with self._changing:
            if not self.loaded:
                return
            self.loaded = False
            if not self._settings.keeps:
                self._held = b""
            self._ready_at = NEVER
            self.count("unloads")
            if self.counts["running"]:
                self.count("unloads_while_running")

    def load_later(self, seconds: float) -> None:
        """Load by itself after so many seconds."""
        wait(seconds)
        self.load()

    @property
    def ready(self) -> bool:
        return time.monotonic() >= self._ready_at

    def stats(self) -> dict[str, object]:
        with self._counting:
            return {
                **self.counts,
                "loaded": self.loaded,
                "held_bytes": len(self._held),
                "container": socket.gethostname(),
                "tag": self._settings.tag,
            }


_Request = socket.socket | tuple[bytes, socket.socket]


class Probe(ThreadingMixIn, HTTPServer):
    """The server, and the objects that its handlers share."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, settings: Settings, model: Model, collector: Collector) -> None:
        self.settings = settings
        self.model = model
        self.collector = collector
        self.started = time.monotonic()
        self.extra_held: list[bytes] = []
        super().__init__((settings.listen, settings.port), Handler)

    def process_request(self, request: _Request, client_address: object) -> None:
        """Handle a connection in its own thread, or, with one thread, before the next one."""
        if self.settings.threads:
            super().process_request(request, client_address)
        else:
            HTTPServer.process_request(self, request, client_address)

    @property
    def alive(self) -> bool:
        if self.settings.mode == "process" and not self.model.ready:
            return False
        return time.monotonic() - self.started >= self.settings.alive_seconds


class Handler(BaseHTTPRequestHandler):
    """Open Inference Protocol paths and plain hooks for the same five questions."""

    protocol_version = "HTTP/1.1"
    server: Probe
    _name: str | None = None

    def do_GET(self) -> None:
        self._route()

    def do_POST(self) -> None:
        self._route()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Log nothing, because tests read this container's log."""

    def setup(self) -> None:
        super().setup()
        if self.server.settings.idle_seconds != NEVER:
            self.connection.settimeout(self.server.settings.idle_seconds)

    def _route(self) -> None:
        settings, model = self.server.settings, self.server.settings.model
        path = self.path.partition("?")[0]
        if not settings.threads:
            self.close_connection = True  # the next connection would have to wait for its end
        if settings.early and path.endswith("infer"):
            self.close_connection = True
            self._answer(200, {"early": True})
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        if settings.no_repository and path.startswith("/v2/repository/"):
            self._answer(settings.no_repository, {"error": "There is no repository here."})
            return
        names = {
            "/stats": "stats",
            "/alive": "alive",
            "/v2/health/live": "alive",
            "/ready": "ready",
            "/v2/health/ready": "ready",
            f"/v2/models/{model}/ready": "ready",
            "/load": "load",
            f"/v2/repository/models/{model}/load": "load",
            "/unload": "unload",
            f"/v2/repository/models/{model}/unload": "unload",
            "/infer": "infer",
            f"/v2/models/{model}/infer": "infer",
        }
        name = self._name = names.get(path)
        if name is None:
            self._answer(404, {"error": f"There is no {path} here."})
        elif settings.redirect and name in settings.redirect_on:
            self._answer(302, {}, {"Location": settings.redirect})
        elif name == "infer":
            self._infer(body)
        elif name == "load":
            self._load()
        elif name == "unload":
            self.server.model.unload()
            self._answer(200, {"loaded": False})
        elif name == "stats":
            self._answer(200, self.server.model.stats())
        else:
            holds = self.server.alive if name == "alive" else self.server.model.ready
            self._answer(200 if holds else 503, {name: holds})

    def _load(self) -> None:
        if self.server.settings.load_status != 200:  # noqa: PLR2004
            self._answer(self.server.settings.load_status, {"error": "The load fails as asked."})
            return
        self.server.model.load()
        self._answer(200, {"loaded": True})

    def _infer(self, raw: bytes) -> None:
        if not self.server.model.ready:
            self._answer(400, {"error": "The model is not loaded."})
            return
        try:
            body = json.loads(raw or b"{}")
        except ValueError:
            self._answer(400, {"error": "The input is not JSON."})
            return
        asked = options_in(body)
        self.server.collector.say("infer_start", input_tag=asked.get("tag"))
        self.server.model.count("running")
        try:
            self._infer_as_asked(body, asked)
        finally:
            self.server.model.count("running", -1)
            self.server.model.count("infers")
            self.server.collector.say("infer_stop", input_tag=asked.get("tag"))

    def _infer_as_asked(self, body: object, asked: dict[str, object]) -> None:
        wait(number(asked, "sleep"))
        if "log" in asked:
            print(asked["log"], file=sys.stderr, flush=True)
        if "hold_bytes" in asked:
            self.server.extra_held.append(b"\x01" * int(number(asked, "hold_bytes")))
        if "exit" in asked:
            os._exit(int(number(asked, "exit")))
        if "close" in asked:
            self.close_connection = True
        elif not self._answer_oddly(asked):
            self._answer_as_asked(body, asked)

    def _answer_oddly(self, asked: Mapping[str, object]) -> bool:
        """Send an answer that is not JSON if the input asks for one; return whether it did."""
        if "flood" in asked:
            self._flood(str(asked["flood"]))
        elif "empty" in asked:
            self._send(int(number(asked, "empty")), b"", {})
        elif "image" in asked:
            self._send(200, b"\x89PNG\r\n\x1a\n", {"Content-Type": "image/png"})
        elif "not_json" in asked:
            self._send(200, b"this is not JSON", {"Content-Type": "application/json"})
        else:
            return False
        return True

    def _answer_as_asked(self, body: object, asked: Mapping[str, object]) -> None:
        if "redirect" in asked:
            self._answer(302, {}, {"Location": str(asked["redirect"])})
        elif "status" in asked:
            self._answer(int(number(asked, "status")), {"error": "The inference fails as asked."})
        else:
            answer: dict[str, object] = {"echo": body, "container": socket.gethostname()}
            if "dataset" in asked:
                answer["dataset"] = inspect_dataset(str(asked["dataset"]))
            if "bytes" in asked:
                answer["blob"] = "x" * int(number(asked, "bytes"))
            self._answer(200, answer)

    def _flood(self, kind: str) -> None:
        """Send without end, until the client closes the connection."""
        first, endless = FLOODS[kind]
        self.close_connection = True
        try:
            self.wfile.write(first)
            while True:
                self.wfile.write(endless)
                if kind == "trickle":
                    time.sleep(TRICKLE_PAUSE_S)
        except OSError:
            return

    def _answer(
        self, status: int, body: Mapping[str, object], headers: Mapping[str, str] | None = None
    ) -> None:
        raw = json.dumps(body).encode()
        self._send(status, raw, {"Content-Type": "application/json", **(headers or {})})

    def _send(self, status: int, raw: bytes, headers: Mapping[str, str]) -> None:
        settings = self.server.settings
        if settings.encoding is not None and self._name in settings.encoding_on:
            headers = {**headers, "Content-Encoding": settings.encoding}
            raw = gzip.compress(raw) if settings.encoding.lower() == "gzip" else raw
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)


def options_in(body: object) -> dict[str, object]:
    """Return the options in a body: at its top, in its `parameters` or in its `input`."""
    if not isinstance(body, dict):
        return {}
    asked = dict(body)
    for inner in (body.get("parameters"), body.get("input")):
        if isinstance(inner, dict):
            asked |= inner
    return asked


def number(asked: Mapping[str, object], name: str) -> float:
    value = asked.get(name, 0)
    return float(value) if isinstance(value, int | float | str) else 0.0


def inspect_dataset(dataset: str) -> dict[str, object]:
    """Return the files of a mounted dataset, and whether it is writable."""
    folder = Path(dataset)
    if not folder.is_dir():
        return {"path": dataset, "files": None, "writable": False}
    mine = folder / ".probe"
    try:
        mine.touch()
        mine.unlink()
        writable = True
    except OSError:
        writable = False
    files = sorted(entry.name for entry in folder.iterdir())
    return {"path": dataset, "files": files, "writable": writable}


def wait(seconds: float) -> None:
    """Sleep; `inf` never returns."""
    while seconds == NEVER:
        time.sleep(3600)
    time.sleep(seconds)


def batch(settings: Settings, collector: Collector) -> int:
    """Run once: progress lines, then the result as last line of stdout and in a file; exit code."""
    ends = time.monotonic() + settings.batch_seconds
    step = 0
    while (left := ends - time.monotonic()) > 0:
        step += 1
        print(f"step {step}", flush=True)
        time.sleep(min(1.0, left))
    if settings.batch_result is not None:
        result = settings.batch_result
    else:
        answer: dict[str, object] = {
            "container": socket.gethostname(),
            "dataset": inspect_dataset(settings.dataset),
        }
        if settings.batch_bytes:
            answer["blob"] = "x" * settings.batch_bytes
        result = json.dumps(answer)
    if settings.batch_output is not None:
        Path(settings.batch_output).write_text(result + "\n", encoding="utf-8")
    print(result, flush=True)
    collector.say("stop", code=settings.batch_exit)
    return settings.batch_exit


def main() -> NoReturn:
    settings = Settings(os.environ, sys.argv[1] if len(sys.argv) > 1 else None)
    collector = Collector(settings.collector, settings.tag)

    def stop(_signal: int, _frame: FrameType | None) -> None:
        collector.say("stop", code=_STOPPED)
        os._exit(_STOPPED)

    signal.signal(signal.SIGTERM, signal.SIG_IGN if settings.ignore_sigterm else stop)
    if settings.start_exit is not None:
        print("exits at start as asked", file=sys.stderr)
        sys.exit(settings.start_exit)
    collector.say("start", mode=settings.mode)
    threading.Thread(target=collector.tick, daemon=True).start()
    if settings.mode == "batch":
        sys.exit(batch(settings, collector))
    model = Model(settings)
    server = Probe(settings, model, collector)
    if settings.mode == "process":
        threading.Thread(target=model.load, daemon=True).start()
    elif settings.self_load_seconds != NEVER:
        later = (settings.self_load_seconds,)
        threading.Thread(target=model.load_later, args=later, daemon=True).start()
    server.serve_forever()
    sys.exit(0)


def _optional_int(text: str | None) -> int | None:
    return None if text is None else int(text)


if __name__ == "__main__":
    main()
