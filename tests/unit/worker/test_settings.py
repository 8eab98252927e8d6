"""The worker's settings and what it says to somebody who got one wrong."""

import pytest
from pydantic import ValidationError

from modelyard.contract.messages import EngineFacts
from worker.__main__ import main
from worker.containers.given_back import UnloadRules
from worker.settings import Reach, WorkerSettings

DEVICES = 'a JSON list, such as [{"uuid": "GPU-1", "model": "A100", "memory": "40g"}]'
VARIABLES = (
    "MODELYARD_AMQP_URL",
    "MODELYARD_HOST_ID",
    "DOCKER_HOST",
    "MODELYARD_WORKER_SLOTS",
    "MODELYARD_WORKER_CPUS",
    "MODELYARD_WORKER_MEMORY",
    "MODELYARD_WORKER_RESERVED_CPUS",
    "MODELYARD_WORKER_RESERVED_MEMORY",
    "MODELYARD_WORKER_DEVICES",
    "MODELYARD_WORKER_LABELS",
    "MODELYARD_WORKER_UNLOAD_TIMEOUT_S",
    "MODELYARD_WORKER_UNLOAD_TOLERANCE",
    "MODELYARD_WORKER_DATASET_ROOTS",
    "MODELYARD_WORKER_ALLOWED_IMAGES",
    "MODELYARD_WORKER_ALLOWED_VOLUMES",
    "MODELYARD_WORKER_DISK",
    "MODELYARD_WORKER_MAX_DISK",
    "MODELYARD_WORKER_REACH",
    "MODELYARD_WORKER_NETWORK",
    "MODELYARD_WORKER_CONTAINER_PREFIX",
    "MODELYARD_WORKER_TMPFS_SIZE",
    "MODELYARD_WORKER_RUNTIME_DIR",
    "MODELYARD_HEALTH_FILE",
)


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_without_any_setting_the_defaults_are_sane(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELYARD_HOST_ID", "h")
    settings = WorkerSettings()
    assert settings.docker_url == "unix:///var/run/docker.sock"
    assert settings.worker_slots is None
    assert settings.worker_devices is None
    assert settings.worker_dataset_roots == ()
    assert settings.worker_allowed_images == ()
    assert settings.worker_allowed_volumes == ()
    assert settings.worker_reach is Reach.PUBLISHED
    assert settings.plan_rules().pids_limit == 256


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELYARD_HOST_ID", "gpu-7")
    monkeypatch.setenv("DOCKER_HOST", "unix:///run/other.sock")
    monkeypatch.setenv("MODELYARD_WORKER_LABELS", '{"zone": "a"}')
    monkeypatch.setenv("MODELYARD_WORKER_DATASET_ROOTS", '["/srv/data"]')
    monkeypatch.setenv("MODELYARD_WORKER_REACH", "network")
    settings = WorkerSettings()
    assert settings.host_id == "gpu-7"
    assert settings.docker_url == "unix:///run/other.sock"
    assert settings.worker_labels == {"zone": "a"}
    assert settings.worker_dataset_roots == ("/srv/data",)
    assert not settings.plan_rules().publish


def test_the_password_of_the_broker_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELYARD_AMQP_URL", "amqp://u:canary@h/")
    assert "canary" not in repr(WorkerSettings(host_id="h"))


ID = '1 to 128 letters, digits, "_", "." or "-", the first a letter or digit'
URL = "a URL that begins with unix:///, tcp://, http:// or https://"
LABELS = 'JSON, such as {"gpu": "a100"}'
ROOTS = 'a JSON list, such as ["/srv/datasets"]'
IMAGES = 'a JSON list, such as ["registry.example/team/*"]'
VOLUMES = 'a JSON list of names in which * stands for any letters, such as ["ds-*"]'
FOLDERS = "folders, none of them the whole file system"
FORMS = "registry/repository, registry/folder/*, registry/* or *, without tags"
NETWORK = "a network of its own, on which containers are kept apart"


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("MODELYARD_HOST_ID", "../x", ID),
        ("MODELYARD_HOST_ID", "gpu 7", ID),
        ("MODELYARD_WORKER_SLOTS", "many", "a valid integer"),
        ("MODELYARD_WORKER_CPUS", "0", "greater than or equal to 0.01"),
        ("MODELYARD_WORKER_MEMORY", "much", "a size in bytes, or with k, m, g or t, such as 512m"),
        ("MODELYARD_WORKER_DEVICES", "GPU-1", DEVICES),
        ("MODELYARD_WORKER_DEVICES", '[{"uuid": "a.b", "memory": 1}]', DEVICES),
        ("MODELYARD_WORKER_DEVICES", '[{"uuid": "a", "memory": 0}]', DEVICES),
        ("MODELYARD_WORKER_DEVICES", '[{"uuid": "a", "memory": 1, "size": 2}]', DEVICES),
        (
            "MODELYARD_WORKER_DEVICES",
            '[{"uuid": "a", "memory": 1}, {"uuid": "a", "memory": 2}]',
            "devices with different uuids",
        ),
        ("MODELYARD_WORKER_SLOTS", "-1", "greater than or equal to 0"),
        ("DOCKER_HOST", "/run/docker.sock", URL),
        ("DOCKER_HOST", "ssh://x", URL),
        ("MODELYARD_WORKER_ALLOWED_IMAGES", "*", IMAGES),
        ("MODELYARD_WORKER_ALLOWED_IMAGES", '["*.example/x"]', f"patterns of the form {FORMS}"),
        ("MODELYARD_WORKER_ALLOWED_VOLUMES", "ds-1", VOLUMES),
        ("MODELYARD_WORKER_ALLOWED_VOLUMES", '["a/b"]', VOLUMES),
        ("MODELYARD_WORKER_DATASET_ROOTS", "/srv/datasets", ROOTS),
        ("MODELYARD_WORKER_DATASET_ROOTS", '["relative"]', ROOTS),
        ("MODELYARD_WORKER_DATASET_ROOTS", '["/"]', FOLDERS),
        ("MODELYARD_WORKER_DATASET_ROOTS", '["/./"]', FOLDERS),
        ("MODELYARD_WORKER_DATASET_ROOTS", '["/a/../."]', FOLDERS),
        ("MODELYARD_WORKER_DATASET_ROOTS", '["//"]', ROOTS),
        ("MODELYARD_WORKER_LABELS", "gpu=a100", LABELS),
        ("MODELYARD_WORKER_LABELS", '["gpu"]', LABELS),
        ("MODELYARD_WORKER_LABELS", '{"gpu": 1}', LABELS),
        (
            "MODELYARD_WORKER_TMPFS_SIZE",
            "much",
            "a size in bytes, or with k, m, g or t, such as 512m",
        ),
        ("MODELYARD_WORKER_RUNTIME_DIR", "here", "an absolute path, such as /run/modelyard"),
        ("MODELYARD_WORKER_NETWORK", "host", NETWORK),
        ("MODELYARD_WORKER_NETWORK", "none", NETWORK),
        ("MODELYARD_WORKER_NETWORK", "bridge", NETWORK),
        ("MODELYARD_WORKER_NETWORK", "default", NETWORK),
    ],
)
def test_a_bad_setting_is_one_sentence_that_names_it_and_what_it_should_be(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    value: str,
    expected: str,
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert said == f"modelyard-worker: {name} is wrong: expected {expected}.\n"


def test_help_lists_every_variable(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    for name in VARIABLES:
        assert name in said


@pytest.mark.parametrize(
    ("images", "caution"),
    [((), "no image may run"), (("*",), "every image may run"), (("modelyard/*",), None)],
)
def test_which_images_may_run_is_said_where_nobody_has_chosen(
    images: tuple[str, ...], caution: str | None
) -> None:
    said = WorkerSettings(host_id="h", worker_allowed_images=images).cautions
    assert (caution in said[0]) if caution else said == ()


FACTS = EngineFacts(version="1", api_version="1", cpus=8, memory=32 << 30)


def test_a_host_offers_what_its_engine_has_but_for_what_the_system_keeps() -> None:
    offer = WorkerSettings(host_id="h").capacity(FACTS, ())
    assert offer is not None
    assert offer.allocatable_millicpus == 8_000
    assert offer.allocatable_memory == (32 << 30) - (512 << 20)


def test_an_operator_says_what_a_host_offers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELYARD_WORKER_CPUS", "16")
    monkeypatch.setenv("MODELYARD_WORKER_RESERVED_CPUS", "0.5")
    monkeypatch.setenv("MODELYARD_WORKER_MEMORY", "64g")
    monkeypatch.setenv("MODELYARD_WORKER_RESERVED_MEMORY", "4g")
    monkeypatch.setenv(
        "MODELYARD_WORKER_DEVICES",
        '[{"uuid": "GPU-1", "model": "A100", "memory": "40g"}, {"uuid": "GPU-2", "memory": 5}]',
    )
    settings = WorkerSettings(host_id="h")
    offer = settings.capacity(FACTS, settings.worker_devices or ())
    assert offer is not None
    assert (offer.allocatable_millicpus, offer.allocatable_memory) == (15_500, 60 << 30)
    assert [(one.uuid, one.model, one.memory) for one in offer.devices] == [
        ("GPU-1", "A100", 40 << 30), ("GPU-2", "", 5),
    ]  # fmt: skip


def test_more_is_never_kept_for_the_system_than_there_is() -> None:
    settings = WorkerSettings(host_id="h", worker_reserved_memory="1t", worker_reserved_cpus=99.0)
    offer = settings.capacity(FACTS, ())
    assert offer is not None
    assert (offer.allocatable_millicpus, offer.allocatable_memory) == (0, 0)


def test_an_engine_that_tells_nothing_of_its_machine_is_limited_by_slots_alone() -> None:
    facts = EngineFacts(version="1", api_version="1")
    assert WorkerSettings(host_id="h").capacity(facts, ()) is None


def test_when_a_model_counts_as_out_of_memory_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    assert WorkerSettings(host_id="h").unload_rules() == UnloadRules(10.0, 768 << 20)
    monkeypatch.setenv("MODELYARD_WORKER_UNLOAD_TIMEOUT_S", "2.5")
    monkeypatch.setenv("MODELYARD_WORKER_UNLOAD_TOLERANCE", "1g")
    assert WorkerSettings(host_id="h").unload_rules() == UnloadRules(2.5, 1 << 30)


@pytest.mark.parametrize("seconds", ["0", "-1", "601", "soon"])
def test_the_time_for_giving_memory_back_has_bounds(
    monkeypatch: pytest.MonkeyPatch, seconds: str
) -> None:
    monkeypatch.setenv("MODELYARD_WORKER_UNLOAD_TIMEOUT_S", seconds)
    with pytest.raises(ValidationError):
        WorkerSettings(host_id="h")


@pytest.mark.parametrize("prefix", ["modelyard", "modelyard.two", "modelyard.a_1"])
def test_a_prefix_of_containers_reaches_their_plan(
    monkeypatch: pytest.MonkeyPatch, prefix: str
) -> None:
    monkeypatch.setenv("MODELYARD_HOST_ID", "h")
    monkeypatch.setenv("MODELYARD_WORKER_CONTAINER_PREFIX", prefix)
    assert WorkerSettings().plan_rules().prefix == prefix


@pytest.mark.parametrize("prefix", ["", "other", "modelyard.", "modelyard.a-b", "modelyard.Two"])
def test_a_prefix_that_could_make_the_names_of_others_is_refused(
    monkeypatch: pytest.MonkeyPatch, prefix: str
) -> None:
    monkeypatch.setenv("MODELYARD_HOST_ID", "h")
    monkeypatch.setenv("MODELYARD_WORKER_CONTAINER_PREFIX", prefix)
    with pytest.raises(ValidationError):
        WorkerSettings()
