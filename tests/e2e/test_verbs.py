"""Every verb in every profile, through real processes, on real containers."""

import asyncio
import csv
import json
from typing import Any

import pytest

from tests.e2e.fleet import Engine, Fleet, Json, User

SERVERS = ["probe-open-inference", "probe-http", "probe-process"]


def echoed(answer: Any) -> str:
    """Return an answer as text, for a look at what came back in it."""
    return json.dumps(answer)


async def on_its_host(engines: dict[str, Engine], view: Json) -> Json:
    """Return the container of an operation as its host's engine knows it."""
    return await engines[view["host_id"]].inspect(view["container_id"])


@pytest.mark.parametrize("model", SERVERS)
async def test_the_life_of_a_job_in_each_profile(
    user: User, engines: dict[str, Engine], model: str
) -> None:
    job_id = user.job_id()
    created = await user.done("DEPLOY_CREATE", job_id, model=model, dataset="ds-550")
    container = await on_its_host(engines, created)
    assert container["Name"] == f"/modelyard-{job_id}-1"
    assert container["State"]["Running"] == (model != "probe-process")
    assert (await user.job(job_id))["state"] == "CREATED"

    await user.done("DEPLOY_LOAD", job_id)
    assert (await user.job(job_id))["state"] == "LOADED"

    inferred = await user.done("INFER", job_id, input={"tag": "hello-17"})
    assert "hello-17" in echoed(await user.result(inferred["operation_id"]))

    await user.done("DEPLOY_UNLOAD", job_id)
    job = await user.job(job_id)
    assert (job["state"], job["container_id"]) == ("CREATED", created["container_id"])
    refused = await user.do("INFER", job_id, input={})
    assert (refused["state"], refused["error"]["code"]) == ("REJECTED", "invalid_job_state")

    await user.done("TERMINATE", job_id)
    assert (await user.job(job_id))["state"] == "TERMINATED"
    assert await engines[created["host_id"]].containers(job_id) == []


@pytest.mark.parametrize("model", [*SERVERS, "probe-batch"])
async def test_temp_in_each_profile_gives_its_answer_and_leaves_nothing(
    user: User, engines: dict[str, Engine], model: str
) -> None:
    job_id = user.job_id()
    given: Json = {} if model == "probe-batch" else {"input": {"tag": "t-9"}}
    done = await user.done("TEMP", job_id, model=model, dataset="ds-550", **given)
    answer = await user.result(done["operation_id"])
    assert answer
    if given:
        assert "t-9" in echoed(answer)
    job = await user.job(job_id)
    assert (job["state"], job["host_id"]) == ("TERMINATED", None)
    for engine in engines.values():
        assert await engine.containers(job_id) == []


async def test_an_input_that_a_batch_model_would_not_get_is_refused(user: User) -> None:
    refused = await user.do("TEMP", user.job_id(), model="probe-batch", input={"tag": "t-9"})
    assert (refused["state"], refused["error"]["code"]) == ("REJECTED", "unexpected_input")


@pytest.mark.parametrize("model", ["m-131", "m-131-batch"])
async def test_temp_of_the_digits_predicts_the_whole_dataset(
    user: User, fleet: Fleet, model: str
) -> None:
    done = await user.done("TEMP", user.job_id(), model=model, dataset="ds-550")
    answer = await user.result(done["operation_id"])
    rows = digits(fleet)
    labels = next(one for one in answer["outputs"] if one["name"] == "label")["data"]
    right = sum(int(row[-1]) == label for row, label in zip(rows, labels, strict=True))
    assert answer["parameters"]["count"] == len(rows) > 500
    assert answer["parameters"]["accuracy"] == pytest.approx(right / len(rows), abs=1e-6)
    assert right / len(rows) > 0.95


async def test_the_original_systems_five_calls_and_an_infer_work_unchanged(
    user: User, fleet: Fleet
) -> None:
    job_id = user.job_id()
    container_id = ""
    for verb, state in [
        ("DEPLOY_CREATE", "CREATED"),
        ("DEPLOY_LOAD", "LOADED"),
        ("INFER", "LOADED"),
        ("DEPLOY_UNLOAD", "CREATED"),
        ("TERMINATE", "TERMINATED"),
        ("TEMP", "TERMINATED"),
    ]:
        body: Json = {
            "job_id": job_id,
            "model": "m-131",
            "dataset": "ds-550",
            "operation_type": verb,
            "container_id": container_id,
        }
        row = digits(fleet)[0]
        if verb == "INFER":
            body["input"] = digit(row)
        answer = await user.http.post("/inference_router/", json=body)
        assert answer.status_code == 202, answer.text
        view = await user.ended(answer.json()["operation_id"])
        assert view["state"] == "SUCCEEDED", view
        assert (await user.job(job_id))["state"] == state
        container_id = (await user.job(job_id))["container_id"] or ""
        if verb == "INFER":
            outputs = (await user.result(view["operation_id"]))["outputs"]
            assert outputs[0]["data"] == [int(row[-1])]


ORIGINAL_CALL = (
    b'{"job_id": "a1", "model": "m-131", "dataset": "ds-550", '
    b'"operation_type": "%s", "container_id": "%s"}'
)
"""What the original system's clients send, to the byte."""
PASTED = b""
"""Stands for the container's id, which their users pasted."""


async def test_the_original_systems_calls_succeed_byte_for_byte(user: User) -> None:
    container_id = b""
    for verb, given in [
        (b"DEPLOY_CREATE", b"aa"),
        (b"DEPLOY_LOAD", PASTED),
        (b"DEPLOY_UNLOAD", PASTED),
        (b"TERMINATE", PASTED),
        (b"TEMP", b"ASDF"),
    ]:
        answer = await user.http.post(
            "/inference_router/",
            content=ORIGINAL_CALL % (verb, given or container_id),
            headers={"Content-Type": "application/json"},
        )
        assert answer.status_code == 202, answer.text
        view = await user.ended(answer.json()["operation_id"])
        assert view["state"] == "SUCCEEDED", view
        if not container_id:
            container_id = view["container_id"].encode()
            assert len(container_id) == 64


@pytest.mark.parametrize("wrong", ["aa", "ASDF", "../images/prune", "ab" * 32, "", None])
async def test_another_container_than_the_jobs_is_a_mismatch(user: User, wrong: str | None) -> None:
    job_id = user.job_id()
    made = await user.done("DEPLOY_CREATE", job_id, model="probe-http", container_id=[wrong])
    view = await user.do("DEPLOY_LOAD", job_id, container_id=wrong)
    if wrong:
        assert (view["state"], view["error"]["code"]) == ("REJECTED", "container_mismatch")
    else:
        assert view["state"] == "SUCCEEDED"
    await user.done("TERMINATE", job_id, container_id=made["container_id"][:12])


def digits(fleet: Fleet) -> list[list[str]]:
    """Return the held-out digits: 64 pixels and a label each."""
    with (fleet.datasets / "ds-550" / "held_out.csv").open(newline="") as file:
        return [row for row in csv.reader(file) if row and row[-1].isdigit()]


def digit(row: list[str]) -> Json:
    """Return one digit as the Open Inference Protocol asks for it."""
    pixels = [float(value) for value in row[:64]]
    return {"inputs": [{"name": "pixels", "shape": [1, 64], "datatype": "FP64", "data": pixels}]}


async def test_operations_of_a_job_sent_at_once_end_in_their_order(user: User) -> None:
    job_id = user.job_id()
    verbs = ["DEPLOY_CREATE", "DEPLOY_LOAD", "INFER", "INFER", "DEPLOY_UNLOAD", "TERMINATE"]
    requests = [
        {"job_id": job_id, "operation_type": verb, "model": "probe-http"}
        | ({"input": {"tag": "x"}} if verb == "INFER" else {})
        for verb in verbs
    ]
    answer = await user.http.post("/v1/jobs/batch", json={"requests": requests})
    assert answer.is_success, answer.text
    ids = [one["operation_id"] for one in answer.json()["results"]]
    views = await asyncio.gather(*(user.ended(one) for one in ids))
    assert [view["state"] for view in views] == ["SUCCEEDED"] * len(verbs)
    ends = [view["finished_at"] for view in views]
    assert ends == sorted(ends)
    starts = [view["started_at"] for view in views]
    assert all(end <= start for end, start in zip(ends, starts[1:], strict=False))


@pytest.mark.parametrize("model", SERVERS)
async def test_repeated_verbs_succeed_and_change_nothing(
    user: User, engines: dict[str, Engine], model: str
) -> None:
    job_id = user.job_id()
    created = [await user.done("DEPLOY_CREATE", job_id, model=model) for _ in range(2)]
    assert created[0]["container_id"] == created[1]["container_id"]
    engine = engines[created[0]["host_id"]]
    for _ in range(2):
        await user.done("DEPLOY_LOAD", job_id)
    before = await engine.inspect(created[0]["container_id"])
    for _ in range(2):
        await user.done("DEPLOY_LOAD", job_id)
    after = await engine.inspect(created[0]["container_id"])
    assert after["State"]["StartedAt"] == before["State"]["StartedAt"]
    for _ in range(2):
        await user.done("DEPLOY_UNLOAD", job_id)
    if model != "probe-process":
        counted = await engine.stats_page(created[0]["container_id"])
        assert (counted["loads"], counted["unloads"]) == (1, 1)
    for _ in range(2):
        await user.done("TERMINATE", job_id)
    assert await engine.containers(job_id) == []


async def test_inferences_run_together_up_to_the_models_concurrency(
    user: User, engines: dict[str, Engine]
) -> None:
    job_id = user.job_id()
    created = await user.done("DEPLOY_CREATE", job_id, model="probe-open-inference")
    await user.done("DEPLOY_LOAD", job_id)
    ids = [await user.submit("INFER", job_id, input={"sleep": 0.5}) for _ in range(4)]
    unload = await user.submit("DEPLOY_UNLOAD", job_id)
    for one in (*ids, unload):
        assert (await user.ended(one))["state"] == "SUCCEEDED"
    counted = await engines[created["host_id"]].stats_page(created["container_id"])
    assert counted["most_running"] == 2
    assert counted["unloads_while_running"] == 0
    await user.done("TERMINATE", job_id)


async def test_jobs_go_to_the_hosts_that_their_models_ask_for(
    user: User, engines: dict[str, Engine]
) -> None:
    for name in engines:
        model = f"only-{name}"
        await user.put_model(
            model,
            image="modelyard/probe:local",
            profile="batch",
            host_labels={"name": name},
            env={"PROBE_MODE": "batch"},
        )
    views = await asyncio.gather(
        *(
            user.done("TEMP", user.job_id(), model=f"only-{name}")
            for name in engines
            for _ in range(2)
        )
    )
    assert [view["host_id"] for view in views] == [name for name in engines for _ in range(2)]


async def test_a_container_is_hardened_by_default(user: User, engines: dict[str, Engine]) -> None:
    job_id = user.job_id()
    created = await user.done("DEPLOY_CREATE", job_id, model="probe-http", dataset="ds-550")
    facts = await on_its_host(engines, created)
    host, config = facts["HostConfig"], facts["Config"]
    assert config["User"] == "65534:65534"
    assert host["CapDrop"] == ["ALL"]
    assert not host["CapAdd"]
    assert not host["Privileged"]
    assert "no-new-privileges" in "".join(host["SecurityOpt"])
    assert host["ReadonlyRootfs"]
    assert list(host["Tmpfs"]) == ["/tmp"]
    assert host["PidsLimit"] > 0
    assert host["Memory"] == host["MemorySwap"] == 1 << 30
    assert host["NanoCpus"] == 10**9
    assert host["LogConfig"]["Config"]["max-size"]
    assert host["Init"]
    assert host["RestartPolicy"]["Name"] in ("", "no")
    assert (host["PidMode"], host["IpcMode"], host["UTSMode"]) in {
        ("", mode, "") for mode in ("private", "none", "")
    }
    assert not host["Devices"]
    assert [(one["Destination"], one["RW"]) for one in facts["Mounts"]] == [("/data", False)]
    (binding,) = host["PortBindings"]["8080/tcp"]
    assert binding["HostIp"] == "127.0.0.1"
    await user.done("TERMINATE", job_id)
