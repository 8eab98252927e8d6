"""Records of a version whose rules were weaker: read, listed, unloaded, and never created again.

The fixture was written by that version: what its store and its messages hold.
"""

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from modelyard.contract.catalog.entries import DatasetSpec, ModelSpec, Profile
from modelyard.contract.errors import ErrorCode
from modelyard.contract.messages import HostCommand
from modelyard.contract.states import OperationState, Verb
from modelyard.contract.strict_json import canonical_json
from modelyard.store.catalog import read_spec
from modelyard.store.records import JobRecord
from tests.fakes.mongodb import MemoryDatabase
from tests.fakes.store import MemoryStore
from tests.support.worker.harness import HOST, VerbHarness, model
from worker.containers.planning import PlanRules, plan_container, spec_hash
from worker.session.command_decode import (
    CommandEnvelope,
    ParsedSpecs,
    read_commands,
    read_envelope,
)

FIXTURE = Path(__file__).resolve().parents[3] / "fixtures/records_before_stricter_rules.json"
RECORDS: dict[str, Any] = json.loads(FIXTURE.read_text())
MODELS: dict[str, str] = {one["_id"]: one["spec"] for one in RECORDS["models"]}
STILL_GOOD = ("coerced", "usual")
BROKEN = sorted(set(MODELS) - set(STILL_GOOD))


def command_of(name: str) -> HostCommand:
    """Return the command of an older dispatcher that carries this model."""
    envelope = read_envelope(json.dumps(RECORDS["host_commands"]).encode())
    assert isinstance(envelope, CommandEnvelope)
    good, bad = read_commands(envelope, ParsedSpecs())
    assert bad == []
    return next(one for one in good if one.model.name == name)


def stored() -> MemoryDatabase:
    """Return a database with the records, as the older version has left it."""
    database = MemoryDatabase(time.monotonic)
    for shelf in ("models", "datasets"):
        for document in RECORDS[shelf]:
            database.write(shelf, document)
    return database


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_stored_model_is_read_as_it_was_stored(name: str) -> None:
    spec = read_spec(ModelSpec, MODELS[name])
    known = json.loads(MODELS[name])
    read = spec.model_dump(mode="json")
    same = known.keys() - {"resources"}
    assert {name: known[name] for name in same} == {name: read[name] for name in same}


@pytest.mark.parametrize("name", BROKEN)
def test_the_same_model_is_refused_at_the_door(name: str) -> None:
    with pytest.raises(ValidationError):
        ModelSpec.model_validate(json.loads(MODELS[name]))


@pytest.mark.parametrize("document", RECORDS["jobs"], ids=lambda one: one["_id"])
def test_a_stored_job_is_read_with_its_model(document: dict[str, Any]) -> None:
    job = JobRecord.model_validate(document)
    assert job.spec is not None
    assert job.dataset_spec is not None
    assert job.spec.name == document["model"]


@pytest.mark.parametrize("text", ["{", '{"name": "x"}', '{"name": "x", "profile": "later"}'])
def test_a_job_whose_model_can_not_be_read_is_listed_without_it(text: str) -> None:
    job = JobRecord.model_validate(RECORDS["jobs"][0] | {"spec": text})
    assert (job.spec, job.job_id) == (None, RECORDS["jobs"][0]["_id"])


async def test_one_entry_that_can_not_be_read_leaves_the_others_there() -> None:
    database = stored()
    database.write("models", {"_id": "odd", "spec": '{"image": 1}'})
    store = MemoryStore(database)
    await store.prepare()
    page = await store.models.page(limit=len(MODELS) + 1)
    assert {spec.name for spec in page.items} == set(MODELS)
    assert not await store.models.create(
        ModelSpec(name="odd", image="a/b:1", profile=Profile.BATCH)
    )
    assert set(await store.models.get_many(["odd", "usual"])) == {"usual"}
    assert await store.models.get("odd") is None
    assert await store.models.delete("odd")
    assert [spec.name for spec in (await store.datasets.page(limit=1)).items] == ["ds"]


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("verb", [Verb.DEPLOY_CREATE, Verb.TEMP])
async def test_no_container_is_made_of_what_breaks_a_rule(name: str, verb: Verb) -> None:
    command = command_of(name)
    harness = VerbHarness(command.model, volumes=("*",))
    harness.runtime.images[command.model.image] = lambda _: harness.server
    ended = await harness.do(verb, input=1)
    assert ended.state is OperationState.FAILED
    assert ended.error is not None
    if verb is Verb.DEPLOY_CREATE and command.model.profile == "batch":
        assert ended.error.code is ErrorCode.UNSUPPORTED_VERB
        return
    assert ended.error.code is ErrorCode.SPEC_REFUSED
    assert ended.error.detail["errors"][0]["pointer"]
    assert harness.runtime.created == []


@pytest.mark.parametrize("name", [name for name in BROKEN if "result" not in name])
async def test_what_an_older_worker_has_made_is_unloaded_and_terminated(name: str) -> None:
    command = command_of(name)
    harness = VerbHarness(command.model)
    older = plan_container(harness.command(Verb.DEPLOY_CREATE), None, PlanRules(host_id=HOST))
    harness.runtime.images[older.image] = lambda _: harness.server
    await harness.runtime.start(await harness.runtime.create(older))
    assert (await harness.do(Verb.DEPLOY_UNLOAD)).state is OperationState.SUCCEEDED
    assert (await harness.do(Verb.TERMINATE)).state is OperationState.SUCCEEDED
    assert harness.runtime.containers == {}


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_container_of_an_older_worker_is_still_that_of_its_spec(name: str) -> None:
    text = canonical_json(json.loads(MODELS[name]))
    older = hashlib.sha256(text.encode()).hexdigest()[:16]
    assert spec_hash(read_spec(ModelSpec, MODELS[name])) == older


def test_a_field_that_is_set_makes_another_spec() -> None:
    bounded = model(resources={"disk": "1g"})
    assert spec_hash(bounded) != spec_hash(model())


def test_a_stored_dataset_is_read_as_it_was_stored() -> None:
    (document,) = RECORDS["datasets"]
    assert read_spec(DatasetSpec, document["spec"]).wait_s == 3.0
