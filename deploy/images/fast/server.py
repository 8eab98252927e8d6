"""A model server for benchmarks: it answers at once, over connections that stay open.

It speaks as much of the Open Inference Protocol and of HTTP/1.1 as a worker uses: health, load,
unload and infer, bodies with a `Content-Length`, `Connection: close`, several requests in one
packet. Every inference has the same answer. It needs only the standard library, so the image is
the base image and this file.
"""

import asyncio
import signal
from collections.abc import Callable

PORT = 8080
MODEL = b"fast"

_END = b"\r\n\r\n"
_MOST_HEAD_BYTES = 65_536
_ANSWER = (
    b'{"model_name":"fast","outputs":[{"name":"label","shape":[1],"datatype":"INT64","data":[7]}]}'
)
_READY = b"/v2/models/" + MODEL + b"/ready"
_INFER = b"/v2/models/" + MODEL + b"/infer"
_LOAD = b"/v2/repository/models/" + MODEL + b"/load"
_UNLOAD = b"/v2/repository/models/" + MODEL + b"/unload"


def _response(status: bytes, body: bytes) -> bytes:
    length = str(len(body)).encode()
    return (
        b"HTTP/1.1 " + status + b"\r\nContent-Type: application/json\r\nContent-Length: "
        + length + _END + body
    )  # fmt: skip


OK = _response(b"200 OK", b"{}")
INFERRED = _response(b"200 OK", _ANSWER)
NOT_LOADED = _response(b"400 Bad Request", b'{"error":"the model is not loaded"}')
NOT_FOUND = _response(b"404 Not Found", b'{"error":"there is no such path"}')
NO_LENGTH = _response(b"411 Length Required", b'{"error":"the body needs a Content-Length"}')


class Model:
    """Whether the model is loaded, and the answer to each request."""

    def __init__(self) -> None:
        self.loaded = False

    def answer(self, method: bytes, path: bytes) -> bytes:
        """Return a whole response."""
        if method == b"POST" and path == _INFER:
            return INFERRED if self.loaded else NOT_LOADED
        if method == b"POST" and path in {_LOAD, _UNLOAD}:
            self.loaded = path == _LOAD
            return OK
        if method == b"GET" and path in {_READY, b"/v2/health/ready"}:
            return OK if self.loaded else NOT_LOADED
        if method == b"GET" and path == b"/v2/health/live":
            return OK
        return NOT_FOUND


class Connection(asyncio.Protocol):
    """One client's connection; requests are answered in their order."""

    def __init__(self, answer: Callable[[bytes, bytes], bytes]) -> None:
        self._answer = answer
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - for the type checker
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer every request that is complete by now."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        self._buffer += data
        answers = []
        while not transport.is_closing() and (end := self._buffer.find(_END)) >= 0:
            line, _, headers = self._buffer[:end].partition(b"\r\n")
            headers = headers.lower()
            length = _content_length(headers)
            total = end + len(_END) + (length or 0)
            if length is not None and len(self._buffer) < total:
                break
            method, _, rest = line.partition(b" ")
            answers.append(
                NO_LENGTH if length is None else self._answer(method, rest.partition(b" ")[0])
            )
            self._buffer = self._buffer[total:]
            if length is None or b"connection: close" in headers:
                transport.write(b"".join(answers))
                transport.close()
                return
        if answers:
            transport.write(b"".join(answers))
        elif len(self._buffer) > _MOST_HEAD_BYTES and _END not in self._buffer:
            transport.abort()


def _content_length(headers: bytes) -> int | None:
    """Return the length of the body, from headers in lower case; null if it is chunked."""
    if b"transfer-encoding:" in headers:
        return None
    _, found, rest = headers.partition(b"content-length:")
    return int(rest.partition(b"\r\n")[0]) if found else 0


async def serve(host: str, port: int) -> None:
    """Serve until SIGTERM."""
    loop = asyncio.get_running_loop()
    model = Model()
    stopped = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    server = await loop.create_server(lambda: Connection(model.answer), host, port, backlog=1024)
    await stopped.wait()
    server.close()


if __name__ == "__main__":
    asyncio.run(serve("0.0.0.0", PORT))  # noqa: S104 - a container's own network
