"""The story of each verb in each profile, over the fake engine."""

import json

import pytest

from modelyard.contract.catalog.entries import DatasetSpec, Profile
from modelyard.contract.catalog.images import full_reference
from modelyard.contract.errors import ErrorCode
from modelyard.contract.states import JobState, OperationState, Phase, Verb
from tests.fakes.programs import FakeBatch
from tests.support.worker.harness import BLIND_HOOKS, HOST, IMAGE, VerbHarness, model
from worker.containers.planning import PlanRules, plan_container
from worker.engine.plan import ImageFacts

CREATE, LOAD, INFER, UNLOAD, TERMINATE, TEMP = (
    Verb.DEPLOY_CREATE,
    Verb.DEPLOY_LOAD,
    Verb.INFER,
    Verb.DEPLOY_UNLOAD,
    Verb.TERMINATE,
    Verb.TEMP,
)
SERVERS = [Profile.PROCESS, Profile.HTTP, Profile.OPEN_INFERENCE]
TOLD = [Profile.HTTP, Profile.OPEN_INFERENCE]


@pytest.mark.parametrize("profile", SERVERS)
async def test_a_job_lives_from_create_to_terminate(profile: Profile) -> None:
    harness = VerbHarness(model(profile))
    created = await harness.do(CREATE)
    assert (created.state, created.job_state) == (OperationState.SUCCEEDED, JobState.CREATED)
    assert created.container_id == harness.container.id
    loaded = await harness.do(LOAD)
    assert (loaded.state, loaded.job_state) == (OperationState.SUCCEEDED, JobState.LOADED)
    assert harness.server.loaded
    answered = await harness.do(INFER, input={"x": [1, 2]})
    assert (answered.state, answered.job_state) == (OperationState.SUCCEEDED, None)
    assert answered.result_json == '{"echo":{"x":[1,2]}}'
    unloaded = await harness.do(UNLOAD)
    assert (unloaded.state, unloaded.job_state) == (OperationState.SUCCEEDED, JobState.CREATED)
    ended = await harness.do(TERMINATE)
    assert (ended.state, ended.job_state) == (OperationState.SUCCEEDED, JobState.TERMINATED)
    assert harness.runtime.containers == {}


@pytest.mark.parametrize(
    ("profile", "runs"),
    [(Profile.PROCESS, False), (Profile.HTTP, True), (Profile.OPEN_INFERENCE, True)],
)
async def test_create_starts_only_what_serves_without_its_model(
    profile: Profile, *, runs: bool
) -> None:
    harness = VerbHarness(model(profile))
    await harness.do(CREATE)
    assert harness.container.running is runs
    assert harness.server.loads == 0


async def test_unload_stops_a_process_and_load_starts_it_again() -> None:
    harness = VerbHarness(model(Profile.PROCESS))
    await harness.do(CREATE)
    await harness.do(LOAD)
    await harness.do(UNLOAD)
    assert not harness.container.running
    assert (await harness.do(LOAD)).job_state is JobState.LOADED
    assert harness.container.running


@pytest.mark.parametrize("profile", SERVERS)
async def test_a_repeated_create_changes_nothing(profile: Profile) -> None:
    harness = VerbHarness(model(profile))
    first = await harness.do(CREATE)
    again = await harness.do(CREATE)
    assert again == first
    assert len(harness.runtime.created) == 1


@pytest.mark.parametrize("hooks", ["asked", "blind"])
@pytest.mark.parametrize("profile", TOLD)
async def test_a_repeated_load_does_not_load_again(profile: Profile, hooks: str) -> None:
    blind = hooks == "blind" and profile is Profile.HTTP
    harness = VerbHarness(model(profile, **({"hooks": BLIND_HOOKS} if blind else {})))
    await harness.do(CREATE)
    await harness.do(LOAD)
    assert (await harness.do(LOAD)).job_state is JobState.LOADED
    assert harness.server.loads == 1


async def test_after_a_restart_a_server_that_can_be_asked_is_not_loaded_again() -> None:
    harness = VerbHarness(model(Profile.HTTP))
    await harness.do(CREATE)
    await harness.do(LOAD)
    harness.restarted()
    assert (await harness.do(LOAD)).job_state is JobState.LOADED
    assert harness.server.loads == 1


@pytest.mark.parametrize("profile", SERVERS)
async def test_a_repeated_unload_changes_nothing(profile: Profile) -> None:
    harness = VerbHarness(model(profile))
    await harness.do(CREATE)
    await harness.do(LOAD)
    await harness.do(UNLOAD)
    assert (await harness.do(UNLOAD)).job_state is JobState.CREATED
    assert harness.server.unloads == (0 if profile is Profile.PROCESS else 1)


async def test_terminate_of_what_is_gone_succeeds() -> None:
    harness = VerbHarness()
    ended = await harness.do(TERMINATE)
    assert (ended.state, ended.job_state) == (OperationState.SUCCEEDED, JobState.TERMINATED)


async def test_terminate_removes_every_generation_up_to_its_own() -> None:
    harness = VerbHarness(model(Profile.PROCESS))
    await harness.do(CREATE, generation=2)
    await harness.do(CREATE, generation=2, job="job-2")
    await harness.do(TERMINATE, generation=3)
    assert [it.name for it in harness.runtime.containers.values()] == ["modelyard-job-2-2"]


async def test_terminate_spares_a_newer_generation() -> None:
    harness = VerbHarness(model(Profile.PROCESS))
    await harness.do(CREATE, generation=2)
    await harness.do(TERMINATE, generation=1)
    assert not harness.runtime.named("modelyard-job-1-2").removed


@pytest.mark.parametrize("verb", [CREATE, TEMP])
async def test_create_and_temp_remove_older_generations_first(verb: Verb) -> None:
    harness = VerbHarness()
    await harness.do(CREATE, generation=1)
    await harness.do(verb, generation=2, input=[1])
    names = [it.name for it in harness.runtime.containers.values()]
    assert names == (["modelyard-job-1-2"] if verb is CREATE else [])


async def test_containers_of_others_are_never_touched() -> None:
    harness = VerbHarness()
    foreign = harness.runtime.add_foreign("modelyard-job-1-1")
    refused = await harness.do(CREATE)
    assert refused.error is not None
    assert refused.error.code is ErrorCode.CREATE_FAILED
    await harness.do(TERMINATE)
    assert foreign.running
    assert not foreign.removed


async def test_a_container_of_another_spec_is_replaced() -> None:
    harness = VerbHarness()
    first = await harness.do(CREATE)
    second = await harness.do(CREATE, spec=model(env={"A": "b"}))
    assert second.container_id != first.container_id
    assert len(harness.runtime.containers) == 1


@pytest.mark.parametrize("profile", SERVERS)
async def test_temp_answers_and_leaves_nothing(profile: Profile) -> None:
    harness = VerbHarness(model(profile))
    ended = await harness.do(TEMP, input="hello")
    assert (ended.state, ended.job_state) == (OperationState.SUCCEEDED, JobState.TERMINATED)
    assert ended.result_json == '{"echo":"hello"}'
    assert harness.runtime.containers == {}


async def test_temp_without_input_asks_for_the_mounted_dataset() -> None:
    harness = VerbHarness()
    harness.runtime.add_volume("digits")
    dataset = DatasetSpec(name="ds-1", volume="digits")
    ended = await harness.do(TEMP, dataset=dataset)
    assert ended.result_json is not None
    asked = json.loads(ended.result_json)["echo"]
    assert asked == {"parameters": {"dataset": "/data"}, "inputs": []}


async def test_temp_without_input_and_dataset_is_missing_its_input() -> None:
    ended = await VerbHarness().do(TEMP)
    assert ended.error is not None
    assert ended.error.code is ErrorCode.MISSING_INPUT


async def test_temp_starts_clean_after_an_attempt_that_was_cut_short() -> None:
    harness = VerbHarness(model(Profile.BATCH), FakeBatch(stdout="1\n"))
    left_over = harness.command(TEMP)
    first = await harness.runtime.create(plan_container(left_over, None, PlanRules(host_id=HOST)))
    ended = await harness.do(TEMP)
    assert ended.container_id != first
    assert ended.result_json == "1"


async def test_a_batch_result_is_the_last_line_of_stdout() -> None:
    harness = VerbHarness(model(Profile.BATCH), FakeBatch(stdout='working\n{"accuracy": 0.5}\n\n'))
    ended = await harness.do(TEMP)
    assert ended.state is OperationState.SUCCEEDED
    assert ended.job_state is JobState.TERMINATED
    assert ended.result_json == '{"accuracy":0.5}'
    assert harness.runtime.containers == {}


async def test_a_batch_result_may_be_a_file() -> None:
    spec = model(Profile.BATCH, result_file="/tmp/out.json")
    harness = VerbHarness(spec, FakeBatch(stdout="noise\n", files={"/tmp/out.json": b"[1, 2]"}))
    assert (await harness.do(TEMP)).result_json == "[1,2]"


@pytest.mark.parametrize("verb", [CREATE, LOAD, INFER, UNLOAD])
async def test_batch_knows_only_temp_and_terminate(verb: Verb) -> None:
    harness = VerbHarness(model(Profile.BATCH), FakeBatch())
    ended = await harness.do(verb, input=1)
    assert ended.state is OperationState.FAILED
    assert ended.error is not None
    assert ended.error.code is ErrorCode.UNSUPPORTED_VERB
    assert ended.job_state is None
    assert (await harness.do(TERMINATE)).state is OperationState.SUCCEEDED


async def test_the_phases_of_a_temp_are_told_in_order() -> None:
    harness = VerbHarness()
    harness.runtime.registry, harness.runtime.images = harness.runtime.images, {}
    await harness.do(TEMP, input=1)
    assert harness.phases == [
        Phase.PULLING,
        Phase.CREATING,
        Phase.STARTING,
        Phase.LOADING,
        Phase.INFERRING,
        Phase.REMOVING,
    ]
    assert [it.seq for it in harness.reports] == list(range(2, len(harness.reports) + 2))
    assert any(it.progress and it.progress.total == 2 for it in harness.reports)


async def test_the_host_is_asked_for_the_served_name() -> None:
    harness = VerbHarness(model(model_name="digits"))
    await harness.do(CREATE)
    await harness.do(LOAD)
    assert "POST /v2/repository/models/digits/load" in harness.server.requests
    assert harness.server.requests[-1] == "GET /v2/models/digits/ready"


async def test_a_create_that_was_cut_short_is_finished_by_load() -> None:
    harness = VerbHarness()
    command = harness.command(CREATE)
    await harness.runtime.create(plan_container(command, None, PlanRules(host_id=HOST)))
    assert (await harness.do(LOAD)).job_state is JobState.LOADED


async def test_a_dataset_is_not_mounted_behind_a_link_of_the_image() -> None:
    harness = VerbHarness()
    harness.runtime.add_volume("digits")
    harness.runtime.links[full_reference(IMAGE)] = {"/data"}
    ended = await harness.do(CREATE, dataset=DatasetSpec(name="ds-1", volume="digits"))
    assert ended.error is not None
    assert ended.error.code is ErrorCode.CREATE_FAILED
    assert "is a link" in ended.error.message
    assert harness.runtime.containers == {}


async def test_a_volume_of_the_image_below_a_dataset_is_refused_before_it_is_made() -> None:
    harness = VerbHarness()
    harness.runtime.add_volume("digits")
    harness.runtime.image_facts[full_reference(IMAGE)] = ImageFacts(volumes=("/data/cache",))
    ended = await harness.do(CREATE, dataset=DatasetSpec(name="ds-1", volume="digits"))
    assert ended.error is not None
    assert ended.error.code is ErrorCode.CREATE_FAILED
    assert harness.runtime.created == []
