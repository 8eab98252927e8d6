"""Content of any type and size, through all processes and a real container; entrypoints."""

import hashlib
import json

from tests.e2e.fleet import User

MIB = 1 << 20


async def test_a_large_input_comes_back_as_a_large_result(user: User) -> None:
    sent = json.dumps({"blob": "x" * (3 * MIB)}).encode()
    headers = {"Content-Type": "application/json"}
    stored = (await user.http.post("/v1/inputs", content=sent, headers=headers)).json()
    assert stored["size"] == len(sent)
    job = user.job_id()
    asked = await user.done("TEMP", job, model="probe-http", input_id=stored["input_id"])
    answer = await user.http.get(asked["links"]["result"])
    assert answer.json()["echo"] == json.loads(sent)
    assert asked["result_bytes"] == len(answer.content) > 3 * MIB
    assert asked["result_sha256"] == hashlib.sha256(answer.content).hexdigest()
    assert asked["result_type"] == "application/json"


async def test_a_batch_leaves_a_file_of_several_mib(user: User) -> None:
    path = "/tmp/result.bin"
    await user.put_model(
        "probe-large-batch",
        image="modelyard/probe:local",
        profile="batch",
        env={
            "PROBE_MODE": "batch",
            "PROBE_BATCH_OUTPUT": path,
            "PROBE_BATCH_BYTES": str(5 * MIB),
        },
        result_file=path,
        result_type="application/octet-stream",
    )
    ended = await user.done("TEMP", user.job_id(), model="probe-large-batch")
    answer = await user.http.get(ended["links"]["result"])
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert len(answer.content) == ended["result_bytes"] > 5 * MIB
    assert len(json.loads(answer.content)["blob"]) == 5 * MIB


async def test_an_entrypoint_replaces_the_one_of_the_image_or_leaves_it_out(user: User) -> None:
    script = "print(1)"
    for name, fields in {
        "with": {"entrypoint": ["python3", "-c"], "command": [script]},
        "without": {"entrypoint": [], "command": ["python3", "-c", script]},
    }.items():
        await user.put_model(name, image="modelyard/probe:local", profile="batch", **fields)
        ended = await user.done("TEMP", user.job_id(), model=name)
        assert await user.result(ended["operation_id"]) == 1


async def test_a_picture_comes_back_byte_for_byte(user: User) -> None:
    ended = await user.done("TEMP", user.job_id(), model="probe-http", input={"image": True})
    assert ended["result_type"] == "image/png"
    answer = await user.http.get(ended["links"]["result"])
    assert answer.headers["Content-Type"] == "image/png"
    assert answer.content.startswith(b"\x89PNG")
