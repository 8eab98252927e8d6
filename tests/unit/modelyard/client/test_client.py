"""The client: what it sends again, what it gives up on, and what its errors say."""

import inspect
from collections.abc import Callable

import httpx2
import pytest

from modelyard.client import (
    ApiError,
    AsyncModelyard,
    Modelyard,
    NotJsonError,
    OperationFailed,
    ServiceUnavailableError,
    Stored,
    endpoints,
)
from modelyard.client.retry import MOST_PAUSE_S, CallAttempts
from modelyard.contract.access.scopes import Role
from modelyard.contract.answers import Accepted
from modelyard.contract.catalog.entries import ModelSpec, Profile
from modelyard.contract.errors import ErrorCode
from modelyard.contract.states import OperationState, Verb
from modelyard.contract.views import DryRun, DryRunOutcome, HostView, Links, OperationView

TAG = '"5f2c"'
ID = "01890000-0000-7000-8000-000000000000"
ACCEPTED = Accepted(
    operation_id=ID, job_id="j-1", state=OperationState.QUEUED, links=Links(self=f"/x/{ID}")
)
PROBLEM = {
    "type": "urn:modelyard:problem:unavailable",
    "title": "A service that the request needs does not answer; try again.",
    "status": 503,
    "detail": "Neither has confirmed it.",
    "code": "unavailable",
    "request_id": "r-1",
}

Answer = Callable[[httpx2.Request], httpx2.Response]


def view(state: OperationState) -> httpx2.Response:
    made = OperationView(
        operation_id=ID,
        job_id="j-1",
        operation_type=Verb.TERMINATE,
        state=state,
        links=Links(self=f"/v1/operations/{ID}"),
    )
    return httpx2.Response(200, content=made.model_dump_json())


class Script:
    """A gateway that answers as written, one line for each request."""

    def __init__(self, *answers: httpx2.Response | Exception | Answer) -> None:
        self.seen: list[httpx2.Request] = []
        self._answers = list(answers)

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.seen.append(request)
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, httpx2.Response) else answer(request)

    def client(self, attempts: int = 5) -> Modelyard:
        return Modelyard("http://g", attempts=attempts, transport=httpx2.MockTransport(self))


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelyard.client.retry.FIRST_PAUSE_S", 0.0)
    monkeypatch.setattr("modelyard.client.retry.MOST_PAUSE_S", 0.0)


def accepted() -> httpx2.Response:
    return httpx2.Response(202, content=ACCEPTED.model_dump_json())


def unavailable() -> httpx2.Response:
    return httpx2.Response(503, json=PROBLEM, headers={"Retry-After": "1"})


def test_a_submission_is_sent_again_under_the_same_key() -> None:
    script = Script(
        httpx2.ConnectError("refused"), httpx2.ReadTimeout("late"), unavailable(), accepted()
    )
    assert script.client().terminate("j-1") == ACCEPTED
    keys = {request.headers["Idempotency-Key"] for request in script.seen}
    assert len(script.seen) == 4
    assert len(keys) == 1


def test_each_submission_has_a_key_of_its_own_unless_one_is_given() -> None:
    script = Script(accepted(), accepted(), accepted())
    client = script.client()
    client.load("j-1")
    client.load("j-1")
    client.submit({"job_id": "j-1", "operation_type": "TERMINATE"}, idempotency_key="mine")
    first, second, third = (request.headers["Idempotency-Key"] for request in script.seen)
    assert first != second
    assert third == "mine"


def test_it_gives_up_after_its_attempts() -> None:
    script = Script(*[unavailable() for _ in range(3)])
    with pytest.raises(ServiceUnavailableError) as caught:
        script.client(attempts=3).hosts()
    assert caught.value.status == 503
    assert caught.value.code == "unavailable"
    assert caught.value.request_id == "r-1"
    assert len(script.seen) == 3


def test_a_gateway_that_is_not_there_is_unavailable() -> None:
    script = Script(httpx2.ConnectError("refused"), httpx2.ConnectError("refused"))
    with pytest.raises(ServiceUnavailableError, match="refused") as caught:
        script.client(attempts=2).hosts()
    assert caught.value.status is None


def test_a_refusal_is_raised_at_once_with_its_faults() -> None:
    refused = PROBLEM | {
        "status": 422,
        "code": "invalid_request",
        "errors": [{"pointer": "/job_id", "message": "wrong"}],
    }
    script = Script(httpx2.Response(422, json=refused))
    with pytest.raises(ApiError) as caught:
        script.client().terminate("a/b")
    assert caught.value.code == "invalid_request"
    assert caught.value.faults[0].pointer == "/job_id"
    assert not isinstance(caught.value, ServiceUnavailableError)


def test_an_answer_from_something_else_is_an_error_too() -> None:
    script = Script(httpx2.Response(404, text="<html>nginx</html>"))
    with pytest.raises(ApiError, match="404"):
        script.client().job("j-1")


def test_waiting_asks_again_until_the_end() -> None:
    def held(request: httpx2.Request) -> httpx2.Response:
        assert float(request.url.params["wait"]) <= 30
        return view(OperationState.RUNNING)

    script = Script(held, view(OperationState.QUEUED), view(OperationState.SUCCEEDED))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("modelyard.client.endpoints.pause_after_poll", lambda *_: 0.0)
        assert script.client().wait(ACCEPTED).state is OperationState.SUCCEEDED
    assert len(script.seen) == 3


@pytest.mark.parametrize("state", [OperationState.FAILED, OperationState.REJECTED])
def test_waiting_raises_for_any_other_end(state: OperationState) -> None:
    with pytest.raises(OperationFailed, match=state) as caught:
        Script(view(state)).client().wait(ID)
    assert caught.value.operation.state is state


def test_waiting_has_an_end() -> None:
    with pytest.raises(TimeoutError, match="still QUEUED"):
        Script(view(OperationState.QUEUED)).client().wait(ID, timeout_s=0)


def test_names_that_travel_into_addresses_are_quoted() -> None:
    script = Script(httpx2.Response(404, json=PROBLEM | {"status": 404, "code": "not_found"}))
    with pytest.raises(ApiError):
        script.client().job("../hosts?x=1")
    assert script.seen[0].url.raw_path == b"/v1/jobs/..%2Fhosts%3Fx%3D1"


def test_a_verb_says_only_what_was_given() -> None:
    script = Script(accepted())
    script.client().create("j-1", "m-131", priority=2)
    assert script.seen[0].content == (
        b'{"job_id":"j-1","operation_type":"DEPLOY_CREATE","model":"m-131","priority":2}'
    )


@pytest.mark.parametrize("key", [None, "k"])
def test_a_dry_run_has_a_key_only_if_one_was_given(key: str | None) -> None:
    found = DryRun(
        outcome=DryRunOutcome.WAITS, job_id="j", operation_type=Verb.INFER, reasons=("It waits.",)
    )
    script = Script(unavailable(), httpx2.Response(200, content=found.model_dump_json()))
    request = {"job_id": "j", "operation_type": "INFER", "input": 1}
    assert script.client().dry_run(request, idempotency_key=key) == found
    for sent in script.seen:
        assert sent.url.raw_path == b"/v1/jobs?dry_run=true"
        assert sent.headers.get("Idempotency-Key") == key


def test_a_model_is_stored_at_its_name() -> None:
    spec = ModelSpec(name="m", image="a/b:1", profile=Profile.BATCH)
    script = Script(httpx2.Response(201, content=spec.model_dump_json()))
    assert script.client().put_model(spec) == spec
    assert script.seen[0].url.path == "/v1/models/m"


async def test_both_clients_change_an_entry_only_if_it_is_as_it_was_read() -> None:
    spec = ModelSpec(name="m", image="a/b:1", profile=Profile.BATCH)

    def answer(request: httpx2.Request) -> httpx2.Response:
        if request.method == "DELETE":
            return httpx2.Response(204)
        return httpx2.Response(200, content=spec.model_dump_json(), headers={"ETag": TAG})

    script = Script(*[answer] * 6)
    client = script.client()
    found = client.stored_model("m")
    assert found == Stored(spec, TAG)
    assert client.put_model(found.entry, if_match=found.etag) == spec
    client.delete_model("m", if_match=found.etag)
    async with AsyncModelyard("http://g", transport=httpx2.MockTransport(script)) as other:
        assert await other.stored_model("m") == found
        assert await other.put_model(spec, if_match=TAG) == spec
        await other.delete_model("m", if_match=TAG)
    assert [one.headers.get("If-Match") for one in script.seen] == [None, TAG, TAG] * 2


@pytest.mark.parametrize("answer", [httpx2.ReadTimeout("late"), unavailable()], ids=str)
@pytest.mark.parametrize(
    "change",
    [
        lambda yard: yard.put_dataset({"name": "d"}, if_match=TAG),
        lambda yard: yard.delete_dataset("d", if_match=TAG),
    ],
)
def test_a_change_of_one_version_that_may_have_been_made_is_not_sent_again(
    change: Callable[[Modelyard], object], answer: httpx2.Response | Exception
) -> None:
    script = Script(httpx2.ConnectError("refused"), answer)
    with pytest.raises(ServiceUnavailableError):
        change(script.client())
    assert len(script.seen) == 2


@pytest.mark.parametrize(
    "url",
    [
        "",
        "gateway",
        "ftp://x",
        "http://",
        "http://h:x",
        "http://h:99999",
        "http://[::1",
        "http://h?x=1",
        "http://h/#x",
        "http://\udcff",
    ],
)
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="is not a URL"):
        Modelyard(url)


@pytest.mark.parametrize("key", ["", "two words", "schlüssel", "\udcff", "x" * 256])
def test_a_key_that_is_none_is_refused_before_it_is_sent(key: str) -> None:
    script = Script()
    with pytest.raises(ApiError, match="printable ASCII") as refused:
        script.client().load("j-1", idempotency_key=key)
    assert refused.value.code == ErrorCode.INVALID_REQUEST
    assert refused.value.faults[0].header == "Idempotency-Key"
    assert not script.seen


@pytest.mark.parametrize(
    "call",
    [
        lambda yard: yard.load("\udcff"),
        lambda yard: yard.load("j-1", metadata={"a": "\udcff"}),
        lambda yard: yard.load("j-1", timeout_s=float("nan")),
        lambda yard: yard.infer("j-1", {"x": float("inf")}),
        lambda yard: yard.infer_model("m", {"x": "\udcff"}),
        lambda yard: yard.infer_model("m", 1, dataset="\udcff"),
        lambda yard: yard.submit_batch([{"job_id": "\udcff"}]),
        lambda yard: yard.upload(b"x", "é/b"),
        lambda yard: yard.job("\udcff"),
        lambda yard: yard.operations(job_id="\udcff"),
        lambda yard: yard.delete_model(""),
        lambda yard: yard.put_model({"name": "\udcff"}),
        lambda yard: yard.put_model({"name": "m"}, if_match='"é"'),
        lambda yard: yard.delete_model("m", if_match='"a"\n'),
    ],
)
def test_what_cant_be_sent_is_refused_as_by_a_gateway(call: Callable[[Modelyard], object]) -> None:
    script = Script()
    with pytest.raises(ApiError) as refused:
        call(script.client())
    assert refused.value.code == ErrorCode.INVALID_REQUEST
    assert refused.value.status is None
    assert not script.seen


def test_the_pause_is_what_the_gateway_asks_for_but_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("modelyard.client.retry.MOST_PAUSE_S", MOST_PAUSE_S)
    asked = httpx2.Response(503, headers={"Retry-After": "2"})
    assert CallAttempts(endpoints.hosts(None), 3).after(asked) == 2
    forever = httpx2.Response(503, headers={"Retry-After": "86400"})
    assert CallAttempts(endpoints.hosts(None), 3).after(forever) == MOST_PAUSE_S
    assert CallAttempts(endpoints.hosts(None), 3).after(httpx2.Response(404)) is None


def test_a_cancel_and_a_retry_are_sent_again_and_a_retry_under_one_key() -> None:
    script = Script(unavailable(), view(OperationState.CANCELLED))
    assert script.client().cancel(ACCEPTED, wait_s=3).state is OperationState.CANCELLED
    assert script.seen[1].url.raw_path == f"/v1/operations/{ID}/cancel?wait=3.000".encode()
    script = Script(httpx2.ReadTimeout("late"), accepted(), accepted())
    client = script.client()
    assert client.retry(ID) == ACCEPTED
    client.retry(ID)
    first, again, other = (request.headers["Idempotency-Key"] for request in script.seen)
    assert first == again != other


@pytest.mark.parametrize("answer", [httpx2.ReadTimeout("late"), unavailable()], ids=str)
def test_a_replay_that_may_have_been_done_is_not_sent_again(
    answer: httpx2.Response | Exception,
) -> None:
    script = Script(httpx2.ConnectError("refused"), answer)
    with pytest.raises(ServiceUnavailableError):
        script.client().replay_dead_letter("ab")
    assert len(script.seen) == 2


def test_a_delete_that_was_done_and_not_answered_is_done() -> None:
    gone = PROBLEM | {"status": 404, "code": "not_found"}
    for before in (httpx2.ReadError("reset"), unavailable()):
        Script(before, httpx2.Response(404, json=gone)).client().delete_model("m")
    never: list[list[Exception]] = [[], [httpx2.ConnectError("refused")]]
    for nothing in never:
        script = Script(*nothing, httpx2.Response(404, json=gone))
        with pytest.raises(ApiError, match="not_found"):
            script.client().delete_dead_letter("ab")


def test_a_drain_says_how() -> None:
    host = HostView(host_id="h", liveness="ONLINE", admission="DRAINING", slots=1, slots_used=0)
    script = Script(*[httpx2.Response(200, content=host.model_dump_json()) for _ in range(2)])
    client = script.client()
    client.drain("h")
    client.drain("h", move=True, deadline_s=2.5)
    assert [request.url.query for request in script.seen] == [
        b"move=false",
        b"move=true&deadline_s=2.5",
    ]


@pytest.mark.parametrize(
    "answer",
    [httpx2.Response(200, text="<html>another service</html>"), httpx2.Response(200, text="{}")],
    ids=["html", "json"],
)
def test_an_answer_that_no_gateway_gives_is_an_error(answer: httpx2.Response) -> None:
    with pytest.raises(ApiError, match="does not come from a gateway"):
        Script(answer).client().job("j-1")


@pytest.mark.parametrize("content", [b"\xff{", b"{", b"[" * 100_000, b"9" * 5_000])
def test_a_result_that_cant_be_read_as_json_is_said_to_be_none(content: bytes) -> None:
    with pytest.raises(NotJsonError, match="can't be read as JSON") as caught:
        Script(httpx2.Response(200, content=content)).client().result(ID)
    assert caught.value.content.content == content


@pytest.mark.parametrize(
    "url",
    [
        "http://me:s3cret@gateway/?x=1",
        "me:s3cret@gateway:8080",
        "http:/me:s3cret@gateway",
        "http://[me:s3cret@gateway",
        "http://me:s3cret\uff20@gateway",
        "http://me:s3cret@gateway:99999",
        "http://me:#s3cret@gateway",
    ],
)
def test_a_url_that_is_refused_is_named_without_its_password(url: str) -> None:
    with pytest.raises(ValueError, match="is not a URL such as") as caught:
        Modelyard(url)
    assert "s3cret" not in str(caught.value)
    assert "gateway" in str(caught.value)


def test_a_code_that_only_a_newer_gateway_knows_is_passed_on() -> None:
    told = PROBLEM | {"status": 409, "code": "of_the_future", "detail": "As never before."}
    with pytest.raises(ApiError, match="As never before") as caught:
        Script(httpx2.Response(409, json=told)).client().cancel(ID)
    assert caught.value.code == "of_the_future"


def test_both_clients_offer_the_same() -> None:
    def offered(kind: type) -> dict[str, list[str]]:
        return {
            name: list(inspect.signature(method).parameters)
            for name, method in inspect.getmembers(kind, inspect.isfunction)
            if not name.startswith("_")
        }

    assert offered(Modelyard) == offered(AsyncModelyard)


async def test_the_asynchronous_client_sends_again_and_waits_too() -> None:
    script = Script(
        httpx2.ConnectError("refused"),
        unavailable(),
        accepted(),
        view(OperationState.SUCCEEDED),
        httpx2.Response(200, content=b"[1]"),
    )
    transport = httpx2.MockTransport(script)
    async with AsyncModelyard("http://g", transport=transport) as client:
        asked = await client.infer("j-1", {"x": 1})
        ended = await client.wait(asked)
        assert ended.state is OperationState.SUCCEEDED
        assert await client.result(ended) == [1]


# --- API keys ---

KEY = "my_0123456789abcdef_" + "a1" * 32


def sent(script: Script) -> list[str | None]:
    return [request.headers.get("Authorization") for request in script.seen]


async def test_both_clients_send_the_key_that_they_are_given_or_that_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script = Script(*[lambda _: httpx2.Response(200, json={"hosts": []})] * 8)
    transport = httpx2.MockTransport(script)
    monkeypatch.delenv("MODELYARD_API_KEY", raising=False)
    url = "http://gateway"
    for key in (None, "given", ""):
        with Modelyard(url, api_key=key, transport=transport) as client:
            client.hosts()
        async with AsyncModelyard(url, api_key=key, transport=transport) as other:
            await other.hosts()
        monkeypatch.setenv("MODELYARD_API_KEY", KEY + "\n")
    with Modelyard(url, transport=transport) as client:
        client.hosts()
    async with AsyncModelyard(url, transport=transport) as other:
        await other.hosts()
    given = ["Bearer given"] * 2
    assert sent(script) == [None, None, *given, None, None, *[f"Bearer {KEY}"] * 2]


@pytest.mark.parametrize("kind", [Modelyard, AsyncModelyard])
@pytest.mark.parametrize(
    ("url", "key"),
    [
        ("http://gateway", KEY + " x"),
        ("http://gateway", KEY + "\r\nX: y"),
        ("http://gateway", KEY + "\u00e9"),
        ("http://user:word@gateway", KEY),
    ],
)
def test_a_key_that_cant_be_sent_is_not_repeated_in_the_error(
    kind: type[Modelyard | AsyncModelyard], url: str, key: str
) -> None:
    with pytest.raises(ValueError, match="MODELYARD_API_KEY") as caught:
        kind(url, api_key=key)
    assert "a1a1" not in str(caught.value)


def test_no_error_and_no_repr_shows_the_key() -> None:
    failing = Script(*[httpx2.ConnectError("no")] * 2)
    client = Modelyard("http://x", api_key=KEY, attempts=1, transport=httpx2.MockTransport(failing))
    with pytest.raises(ServiceUnavailableError) as caught:
        client.hosts()
    shown = [repr(client), str(vars(client)), str(caught.value), repr(caught.value)]
    assert "a1a1" not in "".join([*shown, str(caught.value.__cause__)])


def test_a_new_key_is_asked_for_once_only() -> None:
    script = Script(httpx2.Response(503, json=PROBLEM))
    client = Modelyard("http://x", api_key=KEY, transport=httpx2.MockTransport(script))
    with pytest.raises(ServiceUnavailableError):
        client.create_key("x", role=Role.USER)
    assert len(script.seen) == 1
