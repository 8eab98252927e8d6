"""A registry of one image, which gives its last layer out as slowly as it can."""

import hashlib
import io
import json
import os
import shutil
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

NAME = "slow/probe"
SLOW_BYTES = 1 << 20
TRICKLE_BYTES = 4 << 10
TRICKLE_S = 1.0
_CONFIG = "application/vnd.docker.container.image.v1+json"
_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


class SlowRegistry:
    """Serves an image that an engine has exported, with one more layer that trickles.

    An engine that has pulled a layer once never asks for it again, so the one that trickles is
    another one each time.
    """

    def __init__(self, exported: Path, folder: Path) -> None:
        """Take the image from the file `exported`, as `docker save` writes it, to `folder`."""
        self.trickles = 0
        """How often the last layer was asked for."""
        self._folder = folder
        self._released = threading.Event()
        folder.mkdir()
        with tarfile.open(exported) as image:
            (names,) = json.load(_file(image, "manifest.json"))
            config = json.load(_file(image, names["Config"]))
            layers = [self._keep(_file(image, name)) for name in names["Layers"]]
        slow = self._keep(io.BytesIO(_layer(os.urandom(SLOW_BYTES))))
        self._slow = self._path(slow)
        config["rootfs"]["diff_ids"].append(slow)
        config["history"].append({"created": config["created"], "created_by": "a test"})
        manifest = {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": self._described(_CONFIG, self._keep(io.BytesIO(json.dumps(config).encode()))),
            "layers": [self._described(_LAYER, digest) for digest in (*layers, slow)],
        }
        self._manifest = self._path(self._keep(io.BytesIO(json.dumps(manifest).encode())))

    def release(self) -> None:
        """Give the rest at once."""
        self._released.set()

    @contextmanager
    def served(self) -> Iterator[str]:
        """Serve meanwhile; gives the image's reference. Engines speak plain HTTP to loopback."""
        registry = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                registry.answer(self)

            do_HEAD = do_GET  # noqa: N815 - http.server looks for this name

            def log_message(self, *args: object) -> None:
                del args

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"127.0.0.1:{server.server_port}/{NAME}:1"
        finally:
            self.release()
            server.shutdown()
            server.server_close()

    def answer(self, to: BaseHTTPRequestHandler) -> None:
        """Answer one request."""
        match to.path.split("/")[2:]:
            case [""]:
                self._send(to, 200, "application/json")
            case [*_, "manifests", _]:
                self._send(to, 200, _MANIFEST, self._manifest)
            case [*_, "blobs", digest] if (self._folder / digest).exists():
                self._send(to, 200, "application/octet-stream", self._folder / digest)
            case _:
                self._send(to, 404, "application/json")

    def _send(
        self, to: BaseHTTPRequestHandler, status: int, media_type: str, content: Path | None = None
    ) -> None:
        to.send_response(status)
        to.send_header("Content-Type", media_type)
        to.send_header("Content-Length", str(content.stat().st_size if content else 0))
        if content is not None:
            to.send_header("Docker-Content-Digest", content.name)
        to.end_headers()
        if content is None or to.command != "GET":
            return
        with content.open("rb") as blob:
            if content == self._slow:
                self.trickles += 1
                while not self._released.wait(TRICKLE_S) and (part := blob.read(TRICKLE_BYTES)):
                    to.wfile.write(part)
            shutil.copyfileobj(blob, to.wfile)

    def _keep(self, content: Any) -> str:
        """Keep a blob in a file of its digest's name; return the digest."""
        partial = self._folder / "partial"
        with partial.open("wb") as blob:
            shutil.copyfileobj(content, blob)
        with partial.open("rb") as blob:
            digest = f"sha256:{hashlib.file_digest(blob, 'sha256').hexdigest()}"
        partial.rename(self._path(digest))
        return digest

    def _path(self, digest: str) -> Path:
        return self._folder / digest

    def _described(self, media_type: str, digest: str) -> dict[str, Any]:
        size = self._path(digest).stat().st_size
        return {"mediaType": media_type, "size": size, "digest": digest}


def _file(image: tarfile.TarFile, name: str) -> Any:
    found = image.extractfile(name)
    assert found is not None, f"no file {name}"
    return found


def _layer(content: bytes) -> bytes:
    """Return a layer of one file."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as layer:
        entry = tarfile.TarInfo("opt/slow")
        entry.size = len(content)
        layer.addfile(entry, io.BytesIO(content))
    return made.getvalue()
