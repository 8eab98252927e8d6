"""Commands and their model specs, of which most come again and again."""

import json
from typing import Any

from modelyard.contract.catalog.entries import ModelSpec, Profile
from modelyard.contract.messages import HostCommand, HostCommands
from modelyard.contract.states import Verb
from worker.session import command_decode
from worker.session.command_decode import (
    CommandEnvelope,
    ParsedSpecs,
    read_commands,
    read_envelope,
)

MODEL = ModelSpec(name="m", image="m", profile=Profile.OPEN_INFERENCE, port=8080)


def command(job_id: str, model: ModelSpec = MODEL) -> HostCommand:
    return HostCommand(
        operation_id="0190c2f0-0000-7000-8000-000000000001",
        epoch=1,
        verb=Verb.INFER,
        job_id=job_id,
        generation=1,
        model=model,
        timeout_s=60.0,
    )


def envelope_of(*commands: HostCommand) -> CommandEnvelope:
    sent = HostCommands(host_id="h", incarnation="boot-1", commands=commands)
    read = read_envelope(sent.model_dump_json().encode())
    assert isinstance(read, CommandEnvelope)
    return read


def test_a_spec_that_comes_again_is_the_same_object() -> None:
    specs, sent = ParsedSpecs(), command("j")
    read = [read_commands(envelope_of(sent, sent), specs) for _ in range(2)]
    assert read == [([sent, sent], [])] * 2
    assert len({id(one.model) for good, _ in read for one in good}) == 1


def test_another_spec_of_the_same_job_is_read_anew() -> None:
    specs = ParsedSpecs()
    other = MODEL.model_copy(update={"max_concurrency": 7})
    for model in (MODEL, other, MODEL):
        good, _ = read_commands(envelope_of(command("j", model)), specs)
        assert good == [command("j", model)]


def test_a_command_that_can_not_be_read_is_so_each_time() -> None:
    specs = ParsedSpecs()
    read_commands(envelope_of(command("j")), specs)
    broken: list[Any] = [
        {**command("j").model_dump(mode="json"), "model": {"name": 5}},
        {**command("j").model_dump(mode="json"), "epoch": 0},
        {"job_id": "j"},
        {"job_id": ["j"]},
        5,
    ]
    envelope = CommandEnvelope(host_id="h", incarnation="boot-1", commands=tuple(broken))
    for _ in range(2):
        good, bad = read_commands(envelope, specs)
        assert good == []
        assert [json.loads(one.body)["commands"] for one in bad] == [[one] for one in broken]


def test_only_the_latest_jobs_are_remembered(monkeypatch: Any) -> None:
    monkeypatch.setattr(command_decode, "MAX_SPECS", 2)
    specs = ParsedSpecs()
    (first, *_), _ = read_commands(envelope_of(*map(command, ("a", "b", "c"))), specs)
    (again,), _ = read_commands(envelope_of(command("a")), specs)
    assert again == first
    assert again.model is not first.model
