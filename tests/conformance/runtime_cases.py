"""What the runtime conformance suite runs: a command for a real engine, a program for the fake."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import httpx2

from tests.fakes.programs import FakeBatch
from tests.fakes.runtime import FakeContainer, Program
from worker.engine.labels import ContainerLabels
from worker.engine.plan import ContainerPlan, DatasetMount
from worker.engine.protocol import StartRefusedError

IMAGE = "modelyard/probe:local"
HOST = "conformance"
NETWORK = "modelyard-conformance"


class _Web:
    """Answers every GET with 200 until it is told to end."""

    def start(self, container: FakeContainer) -> None:
        container.write("listening\n")

    def terminate(self, container: FakeContainer) -> None:
        container.exit(0)

    async def answer(self, _request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, text="here")


class _Unstartable:
    """It can't be started: its dataset went away after it was created."""

    def start(self, _container: FakeContainer) -> None:
        raise StartRefusedError("bind source path does not exist")

    def terminate(self, _container: FakeContainer) -> None:
        raise AssertionError("it never started")

    async def answer(self, _request: httpx2.Request) -> httpx2.Response:
        raise AssertionError("it never started")


_SERVE = """
import http.server, signal, sys, threading
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "4"); self.end_headers()
        self.wfile.write(b"here")
    def log_message(self, *_): pass
s = http.server.ThreadingHTTPServer(("0.0.0.0", 8080), H)
signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=s.shutdown).start())
print("listening", flush=True)
s.serve_forever()
"""

_TALK = """
import os, sys
for i in range(50): print(f"out {i}", flush=True)
print("err", file=sys.stderr, flush=True)
print("last", flush=True)
open("/tmp/result.json", "w").write('{"ok": true}')
os.symlink("/etc/passwd", "/tmp/link")
os.mkdir("/tmp/folder")
"""

_FILL = """
import os, time
for folder in os.environ["FOLDERS"].split(","):
    with open(f"{folder}/filled", "wb") as f: f.write(bytes(8 << 20))
print("filled", flush=True)
time.sleep(1000)
"""
_LONG_LOG = """
import sys
print('{"ok": 1}', flush=True)
for _ in range(400_000): sys.stderr.write("e" * 100 + "\\n")
"""
_OOM_CHILD = """
import os, sys
if (child := os.fork()) == 0:
    held = bytes(200 << 20).replace(bytes(1), b"x")
os.waitpid(child, 0)
print('{"ok": 1}', flush=True)
raise SystemExit(int(sys.argv[1]))
"""

_HOLD = """
import time
held = b"x" * (32 << 20)
print("held", flush=True)
time.sleep(1000)
"""

_HUGE_LINE = 'print("x" * 100_000 + "end")'
_MANY = "import sys\nfor i in range(40): print(str(i % 10) * 9_999)\nsys.stdout.flush()"

_TALKED = "".join(f"out {i}\n" for i in range(50)) + "last\n"


class _Holder(FakeBatch):
    """Holds memory until it is stopped."""

    def start(self, container: FakeContainer) -> None:
        super().start(container)
        container.use(33 << 20)


@dataclass(frozen=True)
class Case:
    """One behaviour of a container."""

    name: str
    command: tuple[str, ...]
    program: Program
    port: int | None = None


def _python(script: str) -> tuple[str, ...]:
    return ("python3", "-c", script)


def cases() -> Mapping[str, Case]:
    """Return fresh cases by name."""
    talking = FakeBatch(stdout=_TALKED, stderr="err\n", files={"/tmp/result.json": b'{"ok": true}'})
    made = (
        Case("web", _python(_SERVE), _Web(), port=8080),
        Case("exits 3", _python("raise SystemExit(3)"), FakeBatch(exit_code=3)),
        Case("talks", _python(_TALK), talking),
        Case("huge line", _python(_HUGE_LINE), FakeBatch(stdout="x" * 100_000 + "end\n")),
        Case(
            "many lines",
            _python(_MANY),
            FakeBatch(stdout="".join(str(i % 10) * 9_999 + "\n" for i in range(40))),
        ),
        Case("fills the disk", _python(_FILL), FakeBatch(exit_code=None, disk=16 << 20)),
        Case(
            "talks too much",
            _python(_LONG_LOG),
            FakeBatch(stderr="e" * 100, log_is_full=True),
        ),
        *(
            Case(
                f"loses a child and exits {code}",
                (*_python(_OOM_CHILD), str(code)),
                FakeBatch(exit_code=code, stdout='{"ok": 1}\n', oom_killed=True),
            )
            for code in (0, 3)
        ),
        Case("holds memory", _python(_HOLD), _Holder(exit_code=None, stdout="held\n")),
        Case("sleeps", ("sleep", "1000"), FakeBatch(exit_code=None)),
        Case("unstartable", ("sleep", "1000"), _Unstartable()),
        # The init process starts, and ends with the shell's code for "not found".
        Case("absent", ("/no/such/program",), FakeBatch(exit_code=127)),
    )
    return {case.name: case for case in made}


@dataclass
class Plans:
    """Makes plans whose names never collide with another test's."""

    prefix: str
    made: list[str] = field(default_factory=list)

    def __call__(
        self,
        case: Case,
        *,
        job: str = "job",
        generation: int = 1,
        spec: str = "spec-1",
        image: str = IMAGE,
        dataset: DatasetMount | None = None,
        kept_folder: str | None = None,
        env: Mapping[str, str] | None = None,
        read_only: bool = True,
        name: str | None = None,
    ) -> ContainerPlan:
        job_id = f"{self.prefix}-{job}"
        return ContainerPlan(
            name=name or f"modelyard-{job_id}-{generation}",
            labels=ContainerLabels(
                host_id=HOST,
                job_id=job_id,
                operation_id="00000000-0000-7000-8000-000000000001",
                generation=generation,
                spec=spec,
                port=case.port,
                ready="/ready" if case.port else None,
            ),
            image=image,
            entrypoint=None,
            command=case.command,
            env={"CASE": case.name, **(env or {})},
            user="65534:65534",
            port=case.port,
            publish=True,
            network=NETWORK,
            read_only=read_only,
            tmpfs_bytes=16 << 20,
            kept_folder=kept_folder,
            memory=64 << 20,
            shm=64 << 20,
            cpus=1.0,
            devices=(),
            pids_limit=32,
            stop_grace_s=5,
            dataset=dataset,
        )


def as_json(data: bytes) -> object:
    """Return parsed JSON."""
    return json.loads(data)
