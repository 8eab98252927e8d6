"""Several copies of a model: inferences go to the model, and Modelyard chooses the copy."""

import asyncio
import uuid
from collections import Counter
from typing import Any

import httpx2
import pytest

from tests.e2e.catalog import PROBE, PROBES
from tests.e2e.fleet import Engine, Json, User
from tests.support.waiting import eventually

WAIT = {"Prefer": "wait=60"}
SLOW = {"tag": "slow", "sleep": 2.0}


class Model:
    """A model of its own, and its copies."""

    def __init__(self, user: User, engines: dict[str, Engine], name: str) -> None:
        self.user = user
        self.name = name
        self._engines = engines
        self.jobs: list[str] = []

    async def add(self, *verbs: str) -> str:
        """Create a copy and bring it further with these verbs."""
        job_id = self.user.job_id()
        await self.user.done("DEPLOY_CREATE", job_id, model=self.name)
        for verb in verbs:
            await self.user.done(verb, job_id)
        self.jobs.append(job_id)
        return job_id

    async def infer(self, value: Any, **headers: str) -> httpx2.Response:
        """Send an inference to the model."""
        return await self.user.http.post(
            f"/v1/models/{self.name}/infer", json={"input": value}, headers=headers, timeout=90
        )

    async def inferred(self, value: Any, **headers: str) -> Json:
        """Have an inference done that has to succeed; return its operation."""
        answer = await self.infer(value, **WAIT, **headers)
        assert answer.status_code in (200, 202), answer.text
        view = await self.user.ended(answer.json()["operation_id"])
        assert view["state"] == "SUCCEEDED", view
        return view

    async def states(self) -> dict[str, str]:
        """Return the states of the copies."""
        return {job_id: (await self.user.job(job_id))["state"] for job_id in self.jobs}

    async def asked(self, job_id: str) -> int:
        """Return how often a copy's container was asked, as it counts itself."""
        job = await self.user.job(job_id)
        page = await self._engines[job["host_id"]].stats_page(job["container_id"])
        return int(page["infers"])

    async def end(self) -> None:
        """Remove the copies that are left."""
        for job_id in self.jobs:
            await self.user.done("TERMINATE", job_id)


@pytest.fixture
async def model(user: User, engines: dict[str, Engine], request: pytest.FixtureRequest) -> Any:
    """Put a model into the catalog; a test's parameter is how it stays in memory."""
    name = f"copies-{uuid.uuid4().hex[:8]}"
    needs = {"memory": "256m", "cpus": 0.1}
    residency = getattr(request, "param", {})
    spec = {**PROBES["probe-http"], "resources": needs, "residency": residency}
    await user.put_model(name, image=PROBE, **spec)
    made = Model(user, engines, name)
    yield made
    await made.end()


async def test_inferences_spread_over_the_copies_and_each_is_done_once(model: Model) -> None:
    copies = [await model.add("DEPLOY_LOAD") for _ in range(3)]
    views = await asyncio.gather(*(model.inferred({"tag": str(number)}) for number in range(30)))
    jobs = Counter(view["job_id"] for view in views)
    assert set(jobs) == set(copies)
    assert min(jobs.values()) >= 5

    async def counted() -> bool:
        return {job_id: await model.asked(job_id) for job_id in copies} == jobs

    await eventually(counted, what="containers that count as many")


@pytest.mark.parametrize("model", [{"on_demand": True}], indirect=True)
async def test_one_copy_is_loaded_for_the_first_inference_and_the_next_one_for_a_backlog(
    model: Model,
) -> None:
    copies = [await model.add() for _ in range(2)]
    first = (await model.inferred({"tag": "first"}))["job_id"]
    [other] = set(copies) - {first}
    assert await model.states() == {first: "LOADED", other: "CREATED"}
    assert (await model.inferred({"tag": "again"}))["job_id"] == first

    slow = await asyncio.gather(*(model.infer(SLOW) for _ in range(6)))
    more: list[Json] = []

    async def goes_to_the_other() -> bool:
        more.append((await model.infer({"tag": "more"})).json())
        return bool(more[-1]["job_id"] == other)

    await eventually(goes_to_the_other, what="an inference on the copy that is not loaded")
    assert len(more) < 30, "it took more than a backlog"
    for one in (*(answer.json() for answer in slow), *more):
        assert (await model.user.ended(one["operation_id"]))["state"] == "SUCCEEDED"
    assert await model.states() == {first: "LOADED", other: "LOADED"}


async def test_a_repeated_key_is_one_inference_on_one_copy(model: Model) -> None:
    copies = [await model.add("DEPLOY_LOAD") for _ in range(2)]
    key = {"Idempotency-Key": uuid.uuid4().hex}
    views = await asyncio.gather(*(model.inferred({"tag": "once"}, **key) for _ in range(6)))
    assert len({view["operation_id"] for view in views}) == 1

    async def counted() -> bool:
        return sum([await model.asked(job_id) for job_id in copies]) == 1

    await eventually(counted, what="one inference in the containers")
    refused = await model.infer({"tag": "another"}, **key)
    assert (refused.status_code, refused.json()["code"]) == (422, "idempotency_key_reused")


async def test_no_inference_fails_when_a_copy_is_terminated_meanwhile(model: Model) -> None:
    stays, goes = [await model.add("DEPLOY_LOAD") for _ in range(2)]
    ended = asyncio.Event()
    done: list[Json] = []

    async def one_after_the_other() -> None:
        while not ended.is_set():
            key = {"Idempotency-Key": uuid.uuid4().hex}
            done.append(await model.inferred({"tag": "x"}, **key))

    async def both_were_asked() -> bool:
        return {view["job_id"] for view in done} == {stays, goes}

    async def was_asked_since(count: int) -> bool:
        return len(done) > count + 10

    running = [asyncio.create_task(one_after_the_other()) for _ in range(8)]
    await eventually(both_were_asked, what="an inference on each copy")
    await model.user.done("TERMINATE", goes)
    after = len(done)
    await eventually(lambda: was_asked_since(after), what="inferences after the end of a copy")
    ended.set()
    await asyncio.gather(*running)
    assert {view["job_id"] for view in done[after + len(running) :]} == {stays}
    assert goes in {view["job_id"] for view in done[:after]}


async def test_a_model_without_a_loaded_copy_says_what_there_is(model: Model) -> None:
    none = await model.infer(1)
    assert (none.status_code, none.json()["code"]) == (409, "no_serving_job")
    assert "create one with DEPLOY_CREATE" in none.json()["detail"]
    job_id = await model.add()

    async def said() -> bool:
        return "1 CREATED" in (await model.infer(1)).json()["detail"]

    await eventually(said, what="the copy that is not loaded")
    await model.user.done("DEPLOY_LOAD", job_id)

    async def taken() -> bool:
        return (await model.infer(1)).status_code == 202

    await eventually(taken, what="an inference on the loaded copy")
