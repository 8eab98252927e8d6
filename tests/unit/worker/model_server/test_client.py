"""The requests into a container, against a tiny server that misbehaves."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import closing

import pytest
from pydantic import ValidationError

from modelyard.contract.catalog.entries import Hook, Probe
from modelyard.contract.catalog.rules import AS_RECORDED
from modelyard.contract.content.results import ResultContent
from modelyard.contract.content.transfers import MAX_CONTENT_BYTES
from modelyard.contract.errors import ErrorCode, ModelyardError
from modelyard.contract.messages import MAX_RESULT_BYTES
from worker.engine.protocol import Address
from worker.model_server.client import ModelServer, NoAnswerError, Question
from worker.model_server.http_exchange import BoundedTransport
from worker.model_server.probes import ProbeVerdict, asked_of
from worker.model_server.results import Reply, ResultReader, result_of
from worker.model_server.templates import Placeholders

READY = Probe(path="/ready")


class Raw:
    """Answers every request with fixed bytes, and keeps what it was sent."""

    def __init__(self) -> None:
        self.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
        self.endless = b""
        self.busy: asyncio.Event | None = None
        self.ends: asyncio.Event | None = None
        """The connection stays open until it is set."""
        self.seen: list[bytes] = []
        self.address = Address("127.0.0.1", 0)
        self.sent = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = 0
            for line in head.lower().splitlines():
                if line.startswith(b"content-length:"):
                    length = int(line.partition(b":")[2])
            self.seen.append(head + await reader.readexactly(length))
            if self.busy is not None:
                await self.busy.wait()
            writer.write(self.answer)
            while self.endless:
                writer.write(self.endless)
                self.sent += len(self.endless)
                await writer.drain()
            await writer.drain()
            if self.ends is not None:
                await self.ends.wait()
        except (ConnectionError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()


@pytest.fixture
async def raw() -> AsyncIterator[Raw]:
    made = Raw()
    async with await asyncio.start_server(made.serve, "127.0.0.1", 0) as server:
        made.address = Address("127.0.0.1", server.sockets[0].getsockname()[1])
        yield made


@pytest.fixture
def model_server() -> Iterator[ModelServer]:
    with closing(BoundedTransport()) as transport:
        yield ModelServer(transport)


def fillings(value: object = None) -> Placeholders:
    return Placeholders("m-1", "/data", None if value is None else json.dumps(value))


async def ask(model_server: ModelServer, raw: Raw) -> Reply:
    async with asyncio.timeout(10):
        return await model_server.ask(
            raw.address, Question(Hook(path="/infer"), fillings(), ErrorCode.INFERENCE_FAILED)
        )


async def tell(model_server: ModelServer, raw: Raw) -> None:
    async with asyncio.timeout(10):
        await model_server.send(
            raw.address, Hook(path="/load"), fillings(), failure=ErrorCode.LOAD_FAILED
        )


def _encoded_answer(encoding: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: {encoding}\r\n\r\n"
    return head.encode() + body


async def send(
    model_server: ModelServer, raw: Raw, hook: Hook | None = None, value: object = None
) -> bytes:
    async with asyncio.timeout(10):
        reply = await model_server.ask(
            raw.address,
            Question(hook or Hook(path="/infer"), fillings(value), ErrorCode.INFERENCE_FAILED),
        )
    return bytes(reply.body)


async def test_a_hook_is_sent_as_it_was_written(model_server: ModelServer, raw: Raw) -> None:
    hook = Hook(
        method="PUT",
        path="/v1/{model}/x",
        headers={"X-Model": "{model}", "Host": "other.example", "Content-Length": "0"},
        body={"in": "{input}", "from": "{dataset}/train", "list": ["{input}", 1]},
    )
    await send(model_server, raw, hook, {"a": [1]})
    head, _, body = raw.seen[0].partition(b"\r\n\r\n")
    assert head.startswith(b"PUT /v1/m-1/x HTTP/1.1\r\n")
    assert b"\r\nX-Model: m-1\r\n" in head + b"\r\n"
    assert b"other.example" not in head
    assert json.loads(body) == {"in": {"a": [1]}, "from": "/data/train", "list": [{"a": [1]}, 1]}


async def test_a_body_that_is_the_input_is_sent_untouched(
    model_server: ModelServer, raw: Raw
) -> None:
    await send(model_server, raw, Hook(path="/", body="{input}"), {"a": 1.0})
    assert raw.seen[0].endswith(b'\r\n\r\n{"a": 1.0}')


@pytest.mark.parametrize(
    ("value", "sent"),
    [
        ("../admin?x=1#y", b"/p/..%2Fadmin%3Fx%3D1%23y/q"),
        ("..", b"/p/%2E%2E/q"),
        ("a\r\nX: y", b"/p/a%0D%0AX%3A%20y/q"),
        ("{model}", b"/p/%7Bmodel%7D/q"),
    ],
)
async def test_an_input_never_leaves_its_place_in_the_path(
    model_server: ModelServer, raw: Raw, value: str, sent: bytes
) -> None:
    await send(model_server, raw, Hook(path="/p/{input}/q"), value)
    assert raw.seen[0].split(b" ")[1] == sent


@pytest.mark.parametrize(
    "path", ["@127.0.0.9:1/latest", "", "latest", "//127.0.0.9:1/", "/a\r\nX: y", "/a\x00", ":1/"]
)
async def test_what_is_no_path_is_refused_wherever_it_comes_from(
    model_server: ModelServer, raw: Raw, path: str
) -> None:
    hook = Hook.model_validate({"path": path}, context=AS_RECORDED)
    with pytest.raises(ModelyardError) as sent:
        await send(model_server, raw, hook)
    with pytest.raises(ModelyardError) as probed:
        await model_server.probe(
            raw.address, Probe.model_construct(path=path, headers={}, body_contains=None)
        )
    assert {sent.value.code, probed.value.code} == {ErrorCode.SPEC_REFUSED}
    assert raw.seen == []


async def test_an_empty_input_in_a_path_is_still_sent_to_the_container(
    model_server: ModelServer, raw: Raw
) -> None:
    await send(model_server, raw, Hook(path="/{input}/q"), "")
    assert raw.seen[0].startswith(b"POST //q HTTP/1.1\r\n")


async def test_an_input_never_ends_a_header(model_server: ModelServer, raw: Raw) -> None:
    await send(
        model_server, raw, Hook(path="/", headers={"X-In": "{input}"}), "a\r\nX-Evil: 1\u2028"
    )
    lines = raw.seen[0].partition(b"\r\n\r\n")[0].split(b"\r\n")
    assert not any(line.startswith(b"X-Evil") for line in lines)


async def test_what_one_model_sets_as_a_cookie_no_model_is_sent(
    model_server: ModelServer, raw: Raw
) -> None:
    raw.answer = (
        b"HTTP/1.1 200 OK\r\nSet-Cookie: session=secret; Path=/\r\n"
        b"Set-Cookie: other=1; Domain=127.0.0.1\r\nContent-Length: 2\r\n\r\n{}"
    )
    other = Raw()
    async with await asyncio.start_server(other.serve, "127.0.0.1", 0) as server:
        other.address = Address("127.0.0.1", server.sockets[0].getsockname()[1])
        assert (await model_server.probe(raw.address, READY)).answer is ProbeVerdict.YES
        await send(model_server, raw)
        await send(model_server, other)
        await send(model_server, raw)
    assert not any(b"cookie" in seen.lower() for seen in (*raw.seen, *other.seen))


async def test_a_content_type_of_the_hook_is_the_only_one(
    model_server: ModelServer, raw: Raw
) -> None:
    hook = Hook(path="/", headers={"content-type": "application/x"}, body=1)
    await send(model_server, raw, hook)
    assert raw.seen[0].lower().count(b"content-type:") == 1
    assert b"application/x" in raw.seen[0]


@pytest.mark.parametrize(
    "headers",
    [{"X Y": "1"}, {"X/Y": "1"}, {"": "1"}, {"X": "a\r\nb"}, {"X": " a"}, {"X": "a\x7f"}],
)
def test_a_header_that_could_not_be_sent_is_refused_in_the_catalog(headers: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        Hook(path="/", headers=headers)


def test_an_input_that_is_not_asked_for_is_not_read() -> None:
    unread = Placeholders("m-1", "/data", "not JSON")
    assert unread.in_path("/v2/{model}") == "/v2/m-1"
    assert unread.in_header("{dataset}") == "/data"
    assert unread.in_body({"a": ["{dataset}", 1]}) == '{"a":["/data",1]}'
    assert unread.in_body("{input}") == "not JSON"


@pytest.mark.parametrize(
    "location",
    ["http://169.254.169.254/latest", "file:///etc/passwd", "//other.example/", "/again"],
)
async def test_a_redirect_is_a_failure_and_is_not_followed(
    model_server: ModelServer, raw: Raw, location: str
) -> None:
    raw.answer = f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()
    with pytest.raises(ModelyardError) as caught:
        await send(model_server, raw)
    assert caught.value.code is ErrorCode.INFERENCE_FAILED
    assert caught.value.detail["status"] == 302
    assert len(raw.seen) == 1


async def test_an_endless_answer_is_cut_off(model_server: ModelServer, raw: Raw) -> None:
    raw.answer = b"HTTP/1.1 200 OK\r\n\r\n"
    raw.endless = b"x" * 65_536
    with pytest.raises(ModelyardError) as caught:
        await send(model_server, raw)
    assert caught.value.code is ErrorCode.RESULT_TOO_LARGE
    assert raw.sent < 2 * MAX_CONTENT_BYTES


async def test_of_a_refusal_only_an_excerpt_is_kept(model_server: ModelServer, raw: Raw) -> None:
    raw.answer = b"HTTP/1.1 500 Oops\r\n\r\n"
    raw.endless = b"y" * 65_536
    with pytest.raises(ModelyardError) as caught:
        await send(model_server, raw)
    assert caught.value.detail == {"asked": "POST /infer", "status": 500, "body": "y" * 1_000}


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "identity, br", " Deflate ", "gzip, gzip"])
async def test_a_result_in_an_encoding_is_refused_and_the_encoding_named(
    model_server: ModelServer, raw: Raw, encoding: str
) -> None:
    raw.answer = _encoded_answer(encoding, b"\x1f\x8b")
    reply = await ask(model_server, raw)
    last = encoding.lower().rpartition(",")[2].strip()
    with pytest.raises(ModelyardError, match=last) as caught:
        await ResultReader().read_reply(reply)
    assert caught.value.code is ErrorCode.BAD_RESULT


@pytest.mark.parametrize("encoding", ["", "identity", "Identity", "IDENTITY , identity", ","])
async def test_an_encoding_that_changes_nothing_is_none(
    model_server: ModelServer, raw: Raw, encoding: str
) -> None:
    raw.answer = _encoded_answer(encoding, b"[1]")
    assert await ResultReader().read_reply(await ask(model_server, raw)) == "[1]"


async def test_of_a_load_hook_only_the_status_is_judged(
    model_server: ModelServer, raw: Raw
) -> None:
    raw.answer = _encoded_answer("gzip", b"\x1f\x8b")
    await tell(model_server, raw)
    raw.answer = b"HTTP/1.1 204 No Content\r\n\r\n"
    await tell(model_server, raw)
    raw.answer = b"HTTP/1.1 200 OK\r\n\r\n"
    raw.endless = b"x" * 65_536
    await tell(model_server, raw)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"HTTP/1.1 204 No Content\r\n\r\n", "without content"),
        (b"HTTP/1.1 205 Reset\r\nContent-Length: 0\r\n\r\n", "without content"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n\n", "without content"),
        (b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: 0\r\n\r\n", "image/png"),
        (b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n<html>", "application/json"),
        (b"HTTP/1.1 200 OK\r\n\r\n\x89PNG\x1b[2J", r"begins with: \x89PNG\x1b[2J"),
    ],
)
async def test_an_answer_that_is_no_result_says_what_came(
    model_server: ModelServer, raw: Raw, answer: bytes, says: str
) -> None:
    raw.answer = answer
    reply = await ask(model_server, raw)
    with pytest.raises(ModelyardError) as caught:
        await ResultReader().read_reply(reply)
    assert caught.value.code is ErrorCode.BAD_RESULT
    assert says in f"{caught.value.message} {caught.value.detail}"
    assert caught.value.detail["asked"] == "POST /infer"


@pytest.mark.parametrize(
    ("told", "media_type"),
    [
        (b"image/png", "image/png"),
        (b"text/plain; charset=utf-8", "text/plain; charset=utf-8"),
        (b"no type", "application/octet-stream"),
    ],
)
async def test_an_answer_that_is_not_json_is_a_result_with_its_type(
    model_server: ModelServer, raw: Raw, told: bytes, media_type: str
) -> None:
    raw.answer = b"HTTP/1.1 200 OK\r\nContent-Type: " + told + b"\r\n\r\n\x89[1] \n"
    result = await ResultReader().read_reply(await ask(model_server, raw))
    assert result == ResultContent(content_type=media_type, content=b"\x89[1] \n")


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n" + b" " * 20_000 + b'{"status": "ok"}', ProbeVerdict.YES),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b" " * 70_000 + b'{"status": "ok"}', ProbeVerdict.NO),
        (b'HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"loading"', ProbeVerdict.NO),
        (b'HTTP/1.1 503 No\r\nContent-Length: 4\r\n\r\n"ok"', ProbeVerdict.NO),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok", ProbeVerdict.SILENT),
    ],
)
async def test_a_probe_may_expect_a_text_in_the_answer(
    model_server: ModelServer, raw: Raw, answer: bytes, verdict: ProbeVerdict
) -> None:
    raw.answer = answer
    probe = Probe(path="/ready", headers={"X-Key": "k", "Host": "other"}, body_contains='"ok"')
    assert (await model_server.probe(raw.address, probe)).answer is verdict
    assert b"X-Key: k\r\n" in raw.seen[0]
    assert b"other" not in raw.seen[0]


async def test_a_broken_connection_is_no_answer(model_server: ModelServer, raw: Raw) -> None:
    raw.answer = b""
    with pytest.raises(NoAnswerError):
        await send(model_server, raw)


async def test_a_refused_connection_is_no_answer(model_server: ModelServer, raw: Raw) -> None:
    raw.address = Address("127.0.0.1", 1)
    with pytest.raises(NoAnswerError):
        await send(model_server, raw)


@pytest.mark.parametrize(
    ("status", "answer"),
    [
        ("200 OK", ProbeVerdict.YES),
        ("204 No", ProbeVerdict.YES),
        ("302 F", ProbeVerdict.NO),
        ("503 No", ProbeVerdict.NO),
        ("404 No", ProbeVerdict.NO),
        ("408 Late", ProbeVerdict.SILENT),
        ("429 Many", ProbeVerdict.SILENT),
        ("502 Gate", ProbeVerdict.SILENT),
        ("504 Gate", ProbeVerdict.SILENT),
    ],
)
async def test_2xx_is_yes_and_another_status_no_unless_the_model_was_not_asked(
    model_server: ModelServer, raw: Raw, status: str, answer: ProbeVerdict
) -> None:
    raw.answer = f"HTTP/1.1 {status}\r\nContent-Length: 0\r\nLocation: /\r\n\r\n".encode()
    assert (await model_server.probe(raw.address, READY)).answer is answer


@pytest.mark.parametrize(
    ("status", "text", "answer", "heard"),
    [
        ("503 No", None, ProbeVerdict.NO, "503"),
        ("502 Gate", None, ProbeVerdict.SILENT, "502"),
        ("200 OK", "ready", ProbeVerdict.NO, "200 without 'ready' in the body"),
    ],
)
async def test_a_probe_that_is_not_answered_yes_says_what_came_with_the_status(
    model_server: ModelServer,
    raw: Raw,
    status: str,
    text: str | None,
    answer: ProbeVerdict,
    heard: str,
) -> None:
    raw.answer = f'HTTP/1.1 {status}\r\nContent-Length: 20\r\n\r\n{{"error":"CUDA OOM"}}'.encode()
    probed = await model_server.probe(raw.address, Probe(path="/ready", body_contains=text))
    assert (probed.answer, probed.heard, probed.body) == (answer, heard, '{"error":"CUDA OOM"}')
    asked = asked_of("/ready", 80)
    assert probed.sentences(asked) == (
        "The probe was GET /ready on the container's port 80, and the last answer was: "
        f'{heard}. Its body begins with: \'{{"error":"CUDA OOM"}}\'.'
    )
    assert probed.detail(asked) == {
        "asked": "GET /ready on the container's port 80",
        "last_answer": heard,
        "body": '{"error":"CUDA OOM"}',
    }


async def test_a_probe_that_is_answered_yes_keeps_nothing_of_the_body(
    model_server: ModelServer, raw: Raw
) -> None:
    assert (await model_server.probe(raw.address, READY)).body == ""


async def test_of_a_flood_after_a_no_only_an_excerpt_is_read(
    model_server: ModelServer, raw: Raw
) -> None:
    raw.answer = b"HTTP/1.1 503 No\r\n\r\n"
    raw.endless = b"y" * 65_536
    probed = await model_server.probe(raw.address, READY)
    assert (probed.answer, probed.body) == (ProbeVerdict.NO, "y" * 1_000)
    assert len(probed.sentences("x")) < 400


async def test_a_body_that_is_slow_or_broken_does_not_change_what_the_status_proves(
    model_server: ModelServer, raw: Raw, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw.answer = b"HTTP/1.1 503 No\r\nContent-Length: 9\r\n\r\nhalf"
    probed = await model_server.probe(raw.address, READY)
    assert (probed.answer, probed.body) == (ProbeVerdict.NO, "half")
    monkeypatch.setattr("worker.model_server.client.PROBE_S", 0.2)
    raw.ends = asyncio.Event()
    async with asyncio.timeout(0.9):
        probed = await model_server.probe(raw.address, READY)
    assert (probed.answer, probed.body) == (ProbeVerdict.NO, "half")
    monkeypatch.setattr("worker.model_server.client.EXCERPT_S", 0.1)
    with pytest.raises(ModelyardError) as caught:
        await send(model_server, raw)
    raw.ends.set()
    assert (caught.value.detail["status"], caught.value.detail["body"]) == (503, "half")


async def test_a_404_points_to_where_the_path_comes_from(
    model_server: ModelServer, raw: Raw
) -> None:
    raw.answer = b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n"
    assert "hooks.alive" in (await model_server.probe(raw.address, READY)).hint
    raw.answer = b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n"
    assert (await model_server.probe(raw.address, READY)).hint == ""
    refused = await model_server.probe(Address("127.0.0.1", 1), READY)
    assert "0.0.0.0" in refused.hint


async def test_a_refused_connection_is_no(model_server: ModelServer) -> None:
    probe = await model_server.probe(Address("127.0.0.1", 1), READY)
    assert (probe.answer, probe.nobody_listens) == (ProbeVerdict.NO, True)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200", b"SSH-2.0-x\r\n", b"<html>hello</html>"])
async def test_a_probe_without_a_whole_answer_is_silence(
    model_server: ModelServer, raw: Raw, answer: bytes
) -> None:
    raw.answer = answer
    probe = await model_server.probe(raw.address, READY)
    assert probe.answer is ProbeVerdict.SILENT
    # Docker's proxy closes a connection if nothing listens; whoever says anything listens.
    assert probe.nobody_listens is (answer == b"")


async def test_a_server_that_does_not_answer_in_time_is_silent(
    model_server: ModelServer, raw: Raw, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.model_server.client.PROBE_S", 0.1)
    raw.busy = asyncio.Event()
    probe = await model_server.probe(raw.address, READY)
    raw.busy.set()
    assert (probe.answer, probe.heard) == (ProbeVerdict.SILENT, "nothing within 0.1 s")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"plain", ErrorCode.BAD_RESULT),
        (b"", ErrorCode.BAD_RESULT),
        (b"NaN", ErrorCode.BAD_RESULT),
        (b"[Infinity]", ErrorCode.BAD_RESULT),
        (b"\xff", ErrorCode.BAD_RESULT),
        (b"[" * 1_000 + b"]" * 1_000, ErrorCode.BAD_RESULT),
        (b'"' + b"x" * MAX_RESULT_BYTES + b'"', ErrorCode.RESULT_TOO_LARGE),
    ],
)
def test_what_is_not_a_result_says_why(body: bytes, code: ErrorCode) -> None:
    with pytest.raises(ModelyardError) as caught:
        result_of(body)
    assert caught.value.code is code


def test_a_result_is_kept_compact() -> None:
    assert result_of(b'{ "a" : [1, 2.50] }\n') == '{"a":[1,2.5]}'
