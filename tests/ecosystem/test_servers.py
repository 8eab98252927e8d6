"""Each public server goes through all verbs as it is."""

import pytest

from tests.e2e.fleet import User
from tests.ecosystem.servers import BENTOML, PublicServer


async def test_a_public_server_goes_through_all_verbs(user: User, server: PublicServer) -> None:
    job = user.job_id()
    created = await user.done("DEPLOY_CREATE", job, model=server.model, timeout_s=300)
    for _ in range(2):
        await user.done("DEPLOY_LOAD", job, timeout_s=300)
        for _ in range(2):
            asked = await user.done("INFER", job, input=server.input)
            answer = await user.result(asked["operation_id"])
            assert answer.items() >= shaped(server.answer, answer).items()
            assert asked["container_id"] == created["container_id"]
        await user.done("DEPLOY_UNLOAD", job)
        assert (await user.job(job))["state"] == "CREATED"
    await user.done("TERMINATE", job)
    assert (await user.job(job))["state"] == "TERMINATED"


async def test_a_public_server_answers_once_and_is_gone(user: User, server: PublicServer) -> None:
    job = user.job_id()
    asked = await user.done("TEMP", job, model=server.model, input=server.input, timeout_s=300)
    answer = await user.result(asked["operation_id"])
    assert answer.items() >= shaped(server.answer, answer).items()
    assert (await user.job(job))["state"] == "TERMINATED"


async def test_an_error_of_a_public_server_is_told(user: User, server: PublicServer) -> None:
    job = user.job_id()
    ended = await user.do("TEMP", job, model=server.model, input={"no": "such"}, timeout_s=300)
    assert ended["state"] == "FAILED"
    assert ended["error"]["code"] == "inference_failed"
    assert ended["error"]["detail"]["status"] in range(400, 600)


@pytest.mark.parametrize("server", [BENTOML], indirect=True)
async def test_a_picture_of_a_public_server_comes_back_as_one(user: User) -> None:
    job = user.job_id()
    numbers = {"numbers": [0, 128, 255]}
    asked = await user.done("TEMP", job, model="bentoml-chart", input=numbers, timeout_s=300)
    assert asked["result_type"] == "image/png"
    answer = await user.http.get(asked["links"]["result"])
    assert answer.headers["Content-Type"] == "image/png"
    assert answer.content.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(answer.content) == asked["result_bytes"]


def shaped(wanted: dict[str, object], answer: dict[str, object]) -> dict[str, object]:
    """Return what is wanted; of outputs, only the fields that are wanted of each have to be there.

    MLServer adds `parameters` to each output.
    """
    outputs, got = wanted.get("outputs"), answer.get("outputs")
    if not isinstance(outputs, list) or not isinstance(got, list):
        return wanted
    merged = [{**theirs, **ours} for theirs, ours in zip(got, outputs, strict=True)]
    return {**wanted, "outputs": merged}
