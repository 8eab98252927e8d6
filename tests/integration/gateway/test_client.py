"""The client library and the command line against a gateway that serves."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from modelyard.client import ApiError, AsyncModelyard, Modelyard, OperationFailed
from modelyard.contract.capacity.offers import Device, DeviceReading, DeviceTaint, HostCapacity
from modelyard.contract.catalog.entries import DatasetSpec, ModelSpec, Profile, Resources
from modelyard.contract.errors import ErrorCode, ErrorInfo
from modelyard.contract.ids import operation_id_for_key
from modelyard.contract.messages import EngineFacts, Heartbeat, HostOnline, JobRequest
from modelyard.contract.states import Admission, JobState, OperationState, Verb
from modelyard.contract.topology import JOBS_QUEUE
from modelyard.contract.views import DryRunOutcome
from modelyard.store.capacity.footprints import FootprintKey, Peak
from modelyard.store.records import DeadLetter
from tests.support.command_line import run
from tests.support.gateway import ServedGateway, serving_a_fleet
from tests.support.placed import placed, spec_of

PAYLOAD = b"\x1b[2J [bold]not markup"
LETTER = DeadLetter(
    dead_letter_id="ab" * 20,
    reason="invalid_json",
    detail="It is not JSON.",
    queue="modelyard.jobs.v1",
    routing_key="job.submit",
    payload=PAYLOAD,
    payload_bytes=len(PAYLOAD),
)


@pytest.fixture
async def served(mongo_url: str, amqp_url: str) -> AsyncIterator[ServedGateway]:
    async with serving_a_fleet(mongo_url, amqp_url) as served:
        yield served


async def test_a_whole_life_through_the_synchronous_client(served: ServedGateway) -> None:
    await served.store.jobs.ensure(["j-1"])  # an inference makes no job
    with Modelyard(served.url) as client:
        asked = await asyncio.to_thread(client.infer, "j-1", {"x": [1]})
        waiting = asyncio.create_task(asyncio.to_thread(client.wait, asked, 20))
        await served.has_waiters()
        await served.finish(asked.operation_id, result_json='{"y":[2]}')
        assert (await waiting).state is OperationState.SUCCEEDED
        assert await asyncio.to_thread(client.result, asked) == {"y": [2]}
        assert (await asyncio.to_thread(client.job, "j-1")).state is JobState.NONE
        [host] = await asyncio.to_thread(client.hosts)
        assert host == await asyncio.to_thread(client.host, "h-1")


async def test_the_asynchronous_client_reads_pages_batches_and_the_catalog(
    served: ServedGateway,
) -> None:
    async with AsyncModelyard(served.url) as client:
        requests = [{"job_id": f"j-{n}", "operation_type": "TERMINATE"} for n in range(3)]
        items = await client.submit_batch([*requests, {}])
        assert [item.status for item in items] == [202, 202, 202, 422]
        page = await client.operations(limit=2, state="QUEUED")
        rest = await client.operations(limit=2, state="QUEUED", cursor=page.next)
        assert [len(page.operations), len(rest.operations), rest.next] == [2, 1, None]
        assert len((await client.jobs()).jobs) == 3
        model = ModelSpec(name="m", image="a/b:1", profile=Profile.BATCH)
        assert await client.put_model(model) == await client.model("m") == model
        assert [one.name for one in await client.models()] == ["m", "m-131"]
        assert await client.footprints("m") == ()
        await client.delete_model("m")
        dataset = DatasetSpec(name="d", volume="v")
        assert await client.put_dataset(dataset) == await client.dataset("d")
        assert [one.name for one in await client.datasets()] == ["d", "ds-550"]
        await client.delete_dataset("d")
        with pytest.raises(ApiError) as caught:
            await client.dataset("d")
        assert caught.value.code == "not_found"


async def test_an_inference_on_a_model_names_the_job_that_got_it(served: ServedGateway) -> None:
    await served.store.models.put(spec_of())
    await placed(served.store, "j-1", dataset="ds-550")
    async with AsyncModelyard(served.url) as client:
        asked = await client.infer_model("m", [1], dataset="ds-550", metadata={"by": "me"})
        assert asked.job_id == "j-1"
        assert (await client.operation(asked)).metadata == {"by": "me"}
        with pytest.raises(ApiError) as refused:
            await client.infer_model("m", [1], dataset="other")
    assert (refused.value.code, refused.value.status) == ("no_serving_job", 409)
    with Modelyard(served.url) as one:
        first, again = [
            await asyncio.to_thread(one.infer_model, "m", 1, idempotency_key="k") for _ in range(2)
        ]
    assert first == again


async def test_both_clients_ask_what_would_become_of_a_request(served: ServedGateway) -> None:
    request = JobRequest(job_id="j-1", operation_type=Verb.TEMP, model="m-131")
    with Modelyard(served.url) as client:
        found = await asyncio.to_thread(client.dry_run, request)
    async with AsyncModelyard(served.url) as other:
        assert await other.dry_run(request) == found
        asked = await other.submit(request, idempotency_key="k")
        again = await other.dry_run(request, idempotency_key="k")
    assert (found.outcome, found.host_id) == (DryRunOutcome.STARTS, "h-1")
    assert (again.outcome, again.operation_id) == (DryRunOutcome.REPEATS, asked.operation_id)


async def test_a_failure_carries_its_cause(served: ServedGateway) -> None:
    async with AsyncModelyard(served.url) as client:
        asked = await client.temp("j-1", "m-131", "ds-550")
        error = ErrorInfo(code=ErrorCode.OOM_KILLED, message="Too little memory.")
        await served.finish(asked.operation_id, OperationState.FAILED, error=error)
        with pytest.raises(OperationFailed, match="oom_killed") as caught:
            await client.wait(asked, 10)
        assert caught.value.operation.error == error


async def test_the_asynchronous_client_cancels_retries_drains_and_replays(
    served: ServedGateway,
) -> None:
    async with AsyncModelyard(served.url) as client:
        asked = await client.terminate("j-1")
        assert (await client.cancel(asked)).cancel_requested
        waiting = asyncio.create_task(client.cancel(asked, wait_s=20))
        await served.has_waiters()
        await served.finish(asked.operation_id, OperationState.CANCELLED)
        assert (await waiting).state is OperationState.CANCELLED
        again = await client.retry(asked, idempotency_key="k")
        assert (await client.operation(again)).retry_of == asked.operation_id
        with pytest.raises(ApiError) as caught:
            await client.retry(again)
        assert caught.value.code == "not_retryable"
        drain = (await client.drain("h-1", move=True, deadline_s=60)).drain
        assert drain is not None
        assert drain.move
        assert (await client.uncordon("h-1")).drain is None
        await served.store.dead_letters.add([LETTER])
        [found] = (await client.dead_letters(reason="invalid_json")).dead_letters
        assert (await client.dead_letter(found.dead_letter_id)).payload == PAYLOAD.decode()
        assert (await client.replay_dead_letter(found.dead_letter_id)).replays == 1
        await client.delete_dead_letter(found.dead_letter_id)
        assert (await client.dead_letters()).dead_letters == ()


# --- the command line ---


async def test_a_key_of_the_caller_makes_the_same_operation_of_every_submission(
    served: ServedGateway,
) -> None:
    async with AsyncModelyard(served.url) as client:
        for submit in (client.load, client.unload, client.terminate):
            key = submit.__name__
            twice = [await submit("j-1", idempotency_key=key) for _ in range(2)]
            assert {one.operation_id for one in twice} == {operation_id_for_key(key)}
        asked = await client.infer("j-1", [1], idempotency_key="i", metadata={"by": "me"})
        view = await client.operation(asked)
        assert (asked.operation_id, view.metadata) == (operation_id_for_key("i"), {"by": "me"})


async def test_waiting_shows_the_states_and_prints_the_result(served: ServedGateway) -> None:
    arguments = ("infer", "j-1", "--input", '{"x": 1}', "--wait")
    running = asyncio.create_task(run(served.url, *arguments))
    await served.has_waiters()
    [submission] = await served.published(1)
    await served.finish(submission.requests[0].operation_id, result_json='{"y": "ü"}')
    ran = await running
    assert ran.code == 0
    assert json.loads(ran.out) == {"y": "ü"}
    operation_id = submission.requests[0].operation_id
    assert ran.err.splitlines() == [
        f"operation {operation_id}",
        "INFER j-1 QUEUED",
        "INFER j-1 SUCCEEDED on h-1",
    ]


async def test_an_inference_on_a_model_is_followed_like_any_other(served: ServedGateway) -> None:
    refused = await run(served.url, "infer", "--model", "m-131", "--input", "1")
    assert (refused.code, "profile batch" in refused.err) == (1, True)
    await placed(served.store, "j-1", spec=spec_of("digits"), dataset="ds-550")
    await served.store.models.put(spec_of("digits"))
    arguments = ("infer", "-m", "digits", "-d", "ds-550", "--input", "[1]", "--wait", "--key", "k")
    running = asyncio.create_task(run(served.url, *arguments))
    [submission] = await served.published(1)
    operation_id = operation_id_for_key("k")
    assert submission.requests[0].operation_id == operation_id
    await served.finish(operation_id, result_json="[2]")
    ran = await running
    assert (ran.code, json.loads(ran.out)) == (0, [2])
    assert ran.err.splitlines()[-1] == "INFER j-1 SUCCEEDED on h-1"


async def test_a_failed_operation_is_exit_code_1(served: ServedGateway) -> None:
    operation_id = await served.accepted()
    error = ErrorInfo(code=ErrorCode.EXITED, message="It exited.")
    await served.finish(operation_id, OperationState.FAILED, error=error)
    ran = await run(served.url, "wait", operation_id)
    assert ran.code == 1
    assert "exited: It exited." in ran.err
    machine = await run(served.url, "wait", operation_id, "--json")
    assert machine.code == 1
    assert json.loads(machine.out)["state"] == "FAILED"


async def test_verbs_print_the_operation_for_people_and_machines(served: ServedGateway) -> None:
    for arguments in (
        ("create", "j-1", "--model", "m-131", "-d", "ds-550", "--priority", "3"),
        ("load", "j-1"),
        ("unload", "j-1"),
        ("terminate", "j-1"),
        ("temp", "j-1", "-m", "m-131"),
    ):
        ran = await run(served.url, *arguments)
        assert ran.code == 0, ran.err
        shown = await run(served.url, "status", ran.out.strip())
        assert "QUEUED" in shown.out
    ran = await run(served.url, "terminate", "j-1", "--json")
    assert json.loads(ran.out)["links"]["job"] == "/v1/jobs/j-1"


async def test_an_operation_is_cancelled_and_tried_again(served: ServedGateway) -> None:
    operation_id = await served.accepted(job_id="j-1")
    ran = await run(served.url, "cancel", operation_id)
    assert ran.code == 0, ran.err
    assert "cancel_requested true" in " ".join(ran.out.split())
    running = asyncio.create_task(run(served.url, "cancel", operation_id, "--wait", "--json"))
    await served.has_waiters()
    await served.finish(operation_id, OperationState.CANCELLED)
    ran = await running
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["state"] == "CANCELLED"
    assert ran.err.splitlines()[0] == "TERMINATE j-1 QUEUED cancel requested"
    again = await run(served.url, "retry", operation_id)
    assert again.code == 0, again.err
    shown = await run(served.url, "status", again.out.strip())
    assert f"retry_of {operation_id}" in " ".join(shown.out.split())
    assert "cancel_requested" not in shown.out
    refused = await run(served.url, "retry", again.out.strip())
    assert refused.code == 1
    assert "not_retryable" in refused.err


async def test_a_cancel_that_came_too_late_is_exit_code_1(served: ServedGateway) -> None:
    operation_id = await served.accepted()
    running = asyncio.create_task(run(served.url, "cancel", operation_id, "--wait"))
    await served.has_waiters()
    await served.finish(operation_id)
    ran = await running
    assert ran.code == 1
    assert f"operation {operation_id} ended SUCCEEDED" in ran.err
    ran = await run(served.url, "cancel", operation_id)
    assert ran.code == 1
    assert "already_ended" in ran.err


async def test_a_retry_that_waits_prints_its_result(served: ServedGateway) -> None:
    failed = await served.accepted(operation_type="INFER", input=1)
    await served.finish(failed, OperationState.FAILED)
    running = asyncio.create_task(run(served.url, "retry", failed, "--wait", "--key", "k"))
    await served.has_waiters()
    await served.finish(operation_id_for_key("k"), result_json="[7]")
    ran = await running
    assert (ran.code, json.loads(ran.out)) == (0, [7])


async def test_late_writes_are_shown_with_the_hosts_for_machines(served: ServedGateway) -> None:
    await served.store.hosts.count_fenced_off({("h-1", "other_epoch"): 2})
    machine = json.loads((await run(served.url, "hosts", "--json")).out)
    assert machine[0]["fenced_off"] == {"other_epoch": 2}


async def test_a_drain_is_shown_with_the_hosts(served: ServedGateway) -> None:
    for arguments, shown in (
        ((), "finishing"),
        (("--move",), "moving"),
        (("--move", "--deadline", "604800"), "moving until 2"),
    ):
        ran = await run(served.url, "drain", "h-1", *arguments)
        assert ran.code == 0, ran.err
        assert "DRAINING" in ran.out
        assert shown in (await run(served.url, "hosts")).out
    machine = json.loads((await run(served.url, "hosts", "--json")).out)
    assert machine[0]["drain"]["move"] is True
    await served.store.hosts.drained("h-1")
    assert "done" in (await run(served.url, "hosts")).out
    assert (await run(served.url, "uncordon", "h-1")).code == 0
    assert "DRAINING" not in (await run(served.url, "hosts")).out
    assert (await run(served.url, "drain", "h-1", "--deadline", "0")).code == 2
    assert (await run(served.url, "drain", "h-2")).code == 1


async def test_dead_letters_are_listed_shown_replayed_and_deleted(served: ServedGateway) -> None:
    await served.store.dead_letters.add([LETTER])
    name = LETTER.dead_letter_id
    ran = await run(served.url, "dead-letters", "list", "--reason", "invalid_json")
    assert name in ran.out
    assert "modelyard.jobs.v1" in ran.out
    assert name in (await run(served.url, "dead-letters")).out
    none = await run(served.url, "dead-letters", "list", "--queue", "other", "--json")
    assert json.loads(none.out) == []
    shown = await run(served.url, "dead-letters", "show", name)
    assert "It is not JSON." in shown.out
    assert "\x1b" not in shown.out
    assert "\\x1b[2J [bold]not markup" in shown.out
    machine = await run(served.url, "dead-letters", "show", name, "--json")
    assert json.loads(machine.out)["payload"] == PAYLOAD.decode()
    assert "replays" in (await run(served.url, "dead-letters", "replay", name)).out
    assert (await served.messages(1))[0].body == PAYLOAD
    assert (await run(served.url, "dead-letters", "delete", name)).code == 0
    gone = await run(served.url, "dead-letters", "delete", name)
    assert gone.code == 1
    assert "not_found" in gone.err


async def test_nothing_that_others_wrote_is_a_command_to_the_terminal(
    served: ServedGateway,
) -> None:
    clear = "\x1b[2J\x9b2J\r[red]x"
    operation_id = await served.accepted(metadata={"a": clear})
    error = ErrorInfo(code=ErrorCode.EXITED, message=clear)
    await served.finish(operation_id, OperationState.FAILED, error=error)
    for arguments in (("status", operation_id), ("wait", operation_id)):
        for form in ((), ("--json",)):
            ran = await run(served.url, *arguments, *form)
            for told in (ran.out, ran.err):
                assert not {"\x1b", "\x9b", "\r"} & set(told), (arguments, form)
            assert "[red]x" in ran.out + ran.err
    machine = json.loads((await run(served.url, "status", operation_id, "--json")).out)
    assert machine["metadata"] == {"a": clear}


async def test_lists_are_tables_or_json(served: ServedGateway) -> None:
    operation_id = await served.accepted(job_id="j-1")
    for command, expected in (
        ("operations", operation_id),
        ("jobs", "j-1"),
        ("hosts", "h-1"),
    ):
        assert expected in (await run(served.url, command)).out
        assert expected in json.dumps(json.loads((await run(served.url, "--json", command)).out))
    assert "NONE" in (await run(served.url, "status", "j-1")).out
    none = await run(served.url, "operations", "--state", "FAILED", "--json")
    assert json.loads(none.out) == []


async def test_the_catalog_is_applied_listed_read_and_deleted(
    served: ServedGateway, tmp_path: Path
) -> None:
    model = tmp_path / "model.json"
    model.write_text('{"name": "m", "image": "a/b:1", "profile": "batch"}')
    assert (await run(served.url, "models", "apply", str(model))).code == 0
    assert "a/b:1" in (await run(served.url, "models", "list")).out
    assert "batch" in (await run(served.url, "models", "get", "m")).out
    assert (await run(served.url, "models", "delete", "m")).code == 0
    gone = await run(served.url, "models", "get", "m")
    assert gone.code == 1
    assert "not_found" in gone.err
    dataset = '{"name": "d", "path": "/srv/d"}'
    assert (await run(served.url, "datasets", "apply", "-", stdin=dataset)).code == 0
    assert "/srv/d" in (await run(served.url, "datasets", "list")).out


async def test_a_tainted_device_is_shown_with_whose_memory_it_is(served: ServedGateway) -> None:
    offer = HostCapacity(cpus=1.0, memory=1 << 30, devices=(Device(uuid="GPU-a", memory=8 << 30),))
    engine = EngineFacts(version="29", api_version="1.44")
    online = HostOnline(slots=2, engine=engine, capacity=offer)
    await served.store.hosts.come_online("h-1", "i-2", online)
    taint = DeviceTaint(memory=4 << 30, job_id="gone")
    reading = DeviceReading(uuid="GPU-a", memory_used=4 << 30, tainted=taint)
    beat = Heartbeat(host_id="h-1", incarnation="i-2", devices=(reading,))
    assert await served.store.hosts.beat([beat])
    with Modelyard(served.url) as client:
        (host,) = await asyncio.to_thread(client.hosts)
    assert host.devices[0].measured == reading
    printed = " ".join((await run(served.url, "hosts")).out.split())
    assert "tainted: 4 GiB" in printed


async def test_what_a_model_takes_is_read_also_when_it_left_the_catalog(
    served: ServedGateway,
) -> None:
    footprints, key = served.store.footprints, FootprintKey("m-131", "a/b:1", "NVIDIA H100")
    peak = Peak(load="one", memory=3 << 30, device_memory=40 << 30)
    await footprints.learn(key, peak, new_load=True)
    with Modelyard(served.url) as client:
        (found,) = await asyncio.to_thread(client.footprints, "m-131")
    assert (found.image, found.device) == ("a/b:1", "NVIDIA H100")
    assert (found.memory, found.device_memory, found.loads) == (3 << 30, 40 << 30, 1)
    table = (await run(served.url, "models", "footprints", "m-131")).out
    assert "3 GiB" in table
    assert "40 GiB" in table
    await served.store.models.delete("m-131")
    as_json = await run(served.url, "--json", "models", "footprints", "m-131")
    assert json.loads(as_json.out) == [found.model_dump(mode="json")]
    unknown = await run(served.url, "models", "footprints", "nobody")
    assert unknown.code == 1
    assert "not_found" in unknown.err


async def test_a_model_that_needs_what_it_is_measured_to_take_is_put_as_it_was_given(
    served: ServedGateway,
) -> None:
    # The size is the default, which a client may leave out elsewhere.
    resources = Resources(memory=1 << 30, resident_memory="auto")
    model = ModelSpec(name="m", image="a/b:1", profile=Profile.BATCH, resources=resources)
    with Modelyard(served.url) as client:
        assert await asyncio.to_thread(client.put_model, model) == model


async def test_a_file_of_requests_is_submitted_as_a_batch(served: ServedGateway) -> None:
    good = {"job_id": "j-1", "operation_type": "TERMINATE"}
    ran = await run(served.url, "submit", "-", stdin=json.dumps([good, good]))
    assert ran.code == 0, ran.err
    assert ran.out.count("202") == 2
    bad = await run(served.url, "submit", "-", "--json", stdin=json.dumps([good, {}]))
    assert bad.code == 1
    assert [one["status"] for one in json.loads(bad.out)] == [202, 422]
    waited = await run(served.url, "submit", "-", "--wait", stdin=json.dumps([good]))
    assert waited.code == 2
    assert "--wait takes no list" in waited.err


async def test_a_dry_run_says_what_would_be_for_people_and_machines(served: ServedGateway) -> None:
    request = json.dumps({"job_id": "j-1", "operation_type": "TEMP", "model": "m-131"})
    ran = await run(served.url, "submit", "-", "--dry-run", stdin=request)
    assert ran.code == 0, ran.err
    lines = [line.split() for line in ran.out.splitlines()]
    assert ran.out.startswith("It would start at once on host h-1.\n")
    assert lines[-2] == ["host", "answer"]
    assert lines[-1] == ["h-1", "has", "room;", "would", "have", "to", "get:", "image"]
    machine = await run(served.url, "--json", "submit", "-", "--dry-run", stdin=request)
    found = json.loads(machine.out)
    assert (found["outcome"], found["host_id"]) == ("starts", "h-1")
    await served.store.hosts.admit("h-1", Admission.CORDONED)
    waits = await run(served.url, "submit", "-", "--dry-run", stdin=request)
    assert waits.code == 0
    assert "1 host is CORDONED" in waits.out
    assert [line.split() for line in waits.out.splitlines()][-1] == ["h-1", "is", "CORDONED"]
    assert await served.broker.message_count(JOBS_QUEUE.name) == 0


async def test_an_entry_that_somebody_else_has_changed_is_not_applied(
    served: ServedGateway, tmp_path: Path
) -> None:
    dataset = tmp_path / "dataset.json"
    dataset.write_text('{"name": "d", "path": "/srv/d"}')
    assert (await run(served.url, "datasets", "apply", str(dataset))).code == 0
    seen = (await run(served.url, "datasets", "get", "d", "--etag")).out.strip()
    dataset.write_text('{"name": "d", "path": "/srv/e"}')
    applied = await run(served.url, "datasets", "apply", str(dataset), "--if-match", seen)
    assert applied.code == 0, applied.err
    for change in (("apply", str(dataset)), ("delete", "d")):
        late = await run(served.url, "datasets", *change, "--if-match", seen)
        assert (late.code, "precondition_failed" in late.err) == (1, True)
    async with AsyncModelyard(served.url) as yard:
        found = await yard.stored_dataset("d")
        assert found.entry.path == "/srv/e"
        await yard.put_dataset({"name": "d", "path": "/srv/f"}, if_match=found.etag)
        with pytest.raises(ApiError, match="precondition_failed"):
            await yard.delete_dataset("d", if_match=found.etag)


async def test_a_list_that_goes_on_says_so_and_is_filtered_by_model(served: ServedGateway) -> None:
    await served.store.models.put(spec_of())
    for number in range(3):
        await served.accepted(job_id=f"j-{number}", model="m")
        await placed(served.store, f"j-{number}")
    for what in ("jobs", "operations"):
        part = await run(served.url, what, "--limit", "2", "--model", "m")
        assert (part.code, len(part.out.splitlines())) == (0, 3)
        assert "There are older ones" in part.err
        whole = await run(served.url, what, "--limit", "3")
        assert len(whole.out.splitlines()) == 4
        assert whole.err == ""
        other = await run(served.url, what, "--model", "other")
        assert len(other.out.splitlines()) == 1


async def test_a_dry_run_that_would_be_rejected_is_exit_code_1(served: ServedGateway) -> None:
    load = json.dumps({"job_id": "j-1", "operation_type": "DEPLOY_LOAD"})
    ran = await run(served.url, "submit", "-", "--dry-run", stdin=load)
    assert ran.code == 1
    assert ran.out.startswith("It would be REJECTED (invalid_job_state): ")
    refused = await run(served.url, "submit", "-", "--dry-run", stdin="{}")
    assert refused.code == 2
    assert "/job_id: field required" in refused.err
    for wrong in (("--wait", load), ("--json", f"[{load}]")):
        usage = await run(served.url, "submit", "-", "--dry-run", wrong[0], stdin=wrong[1])
        assert usage.code == 2
        assert "neither a list nor --wait" in usage.err


async def test_wrong_usage_is_exit_code_2_and_says_why(served: ServedGateway) -> None:
    wrong = {
        ("infer", "j-1"): "--input",
        ("infer", "j-1", "--input", "{"): "--input",
        ("infer", "--input", "1"): "--model",
        ("infer", "j-1", "--model", "m", "--input", "1"): "not both",
        ("infer", "j-1", "--dataset", "d", "--input", "1"): "--dataset",
        ("create", "j-1"): "--model",
        ("submit", "/nowhere.json"): "No such file",
        ("terminate", "a/b"): "job_id",
        ("--url", "nonsense", "hosts"): "is not a URL",
        ("dance",): "dance",
    }
    for arguments, expected in wrong.items():
        ran = await run(served.url, *arguments)
        assert ran.code == 2, (arguments, ran)
        assert expected in ran.err
        assert ran.out == ""


async def test_a_gateway_that_is_away_is_exit_code_3() -> None:
    ran = await run("http://127.0.0.1:1", "hosts")
    assert ran.code == 3
    assert ran.err.startswith("error: The gateway at http://127.0.0.1:1 does not answer: ")
    assert "--url or MODELYARD_URL" in ran.err
