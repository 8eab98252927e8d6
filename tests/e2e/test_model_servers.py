"""Model servers with manners of their own, as a client of the whole system sees them."""

import pytest

from tests.e2e.catalog import PROBE, PROBES
from tests.e2e.fleet import Engine, User

ONE_THREAD = {"PROBE_THREADS": "1"}
LOADS_ITSELF = {"PROBE_NO_REPOSITORY": "405", "PROBE_SELF_LOAD_SECONDS": "3"}


async def put_probe(user: User, name: str, base: str = "probe-http", **changes: object) -> None:
    """Put a variant of a probe into the catalog."""
    await user.put_model(name, **{"image": PROBE, **PROBES[base], **changes})


async def created(user: User, model: str) -> str:
    job_id = user.job_id()
    await user.done("DEPLOY_CREATE", job_id, model=model)
    return job_id


async def test_the_unload_of_a_busy_server_waits_for_its_turn(
    user: User, engines: dict[str, Engine]
) -> None:
    await put_probe(user, "busy", env=ONE_THREAD)
    job_id = await created(user, "busy")
    await user.done("DEPLOY_LOAD", job_id)
    one = await user.do("INFER", job_id, input={"sleep": 8}, timeout_s=1)
    assert one["state"] == "TIMED_OUT"
    assert (await user.job(job_id))["state"] == "LOADED"
    await user.done("DEPLOY_UNLOAD", job_id)
    job = await user.job(job_id)
    stats = await engines[job["host_id"]].stats_page(job["container_id"])
    assert (stats["unload_calls"], stats["loaded"], stats["running"]) == (1, False, 0)
    await user.done("TERMINATE", job_id)


async def test_a_server_without_a_repository_is_loaded_unloaded_and_loaded_again(
    user: User, engines: dict[str, Engine]
) -> None:
    await put_probe(user, "loads-itself", base="probe-open-inference", env=LOADS_ITSELF)
    job_id = await created(user, "loads-itself")
    await user.done("DEPLOY_LOAD", job_id)
    await user.done("DEPLOY_UNLOAD", job_id)
    job = await user.job(job_id)
    facts = await engines[job["host_id"]].inspect(job["container_id"])
    assert facts["State"]["Running"] is False, "nothing of the model is in memory"
    await user.done("DEPLOY_LOAD", job_id)
    view = await user.done("INFER", job_id, input={"x": 1})
    assert (await user.result(view["operation_id"]))["echo"] == {"x": 1}
    await user.done("TERMINATE", job_id)


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        ({"empty": 204}, "without content"),
        ({"not_json": True}, "this is not JSON"),
    ],
)
async def test_an_answer_that_is_no_result_is_shown_to_the_client(
    user: User, wish: dict[str, object], says: str
) -> None:
    view = await user.do("TEMP", user.job_id(), model="probe-http", input=wish)
    assert (view["state"], view["error"]["code"]) == ("FAILED", "bad_result")
    assert says in str(view["error"])


async def test_a_server_on_its_own_loopback_is_told_where_to_listen(user: User) -> None:
    await put_probe(user, "loopback", env={"PROBE_LISTEN": "127.0.0.1"}, start_timeout_s=3)
    view = await user.do("DEPLOY_CREATE", user.job_id(), model="loopback")
    assert (view["state"], view["error"]["code"]) == ("FAILED", "not_ready")
    assert "GET /alive on the container's port 8080" in view["error"]["message"]
    assert "0.0.0.0" in view["error"]["message"]
