"""The container of a command: its whole configuration, and nothing that was not allowed."""

from typing import Any

import pytest
from pydantic import ValidationError

from modelyard.contract.catalog.entries import Profile, Resources
from modelyard.contract.errors import ErrorCode, ModelyardError
from modelyard.contract.states import Verb
from tests.support.worker.harness import HOST, VerbHarness, model
from worker.containers.planning import PlanRules, plan_container
from worker.engine.docker.config import engine_config
from worker.engine.docker.documents import ContainerDocument, ImageDocument, PullLine, PullProgress
from worker.engine.image_references import AllowList, Repository, full_reference, repository_of
from worker.engine.labels import ContainerLabels
from worker.engine.plan import ContainerPlan, DatasetMount, ImageFacts

# What Docker may ever be told. A field that is added to the configuration must be added here, by
# somebody who thought about it.
TOP = {
    "Image", "User", "Env", "Labels", "Tty", "OpenStdin", "AttachStdin", "AttachStdout",
    "AttachStderr", "Healthcheck", "StopTimeout", "HostConfig", "NetworkingConfig",
    "Cmd", "ExposedPorts",
}  # fmt: skip
HOST_CONFIG = {
    "NetworkMode", "CapDrop", "SecurityOpt", "Privileged", "PublishAllPorts", "IpcMode",
    "ReadonlyRootfs", "Memory", "MemorySwap", "NanoCpus", "PidsLimit", "ShmSize",
    "OomKillDisable", "Init", "AutoRemove", "RestartPolicy", "LogConfig", "Mounts", "Tmpfs",
    "PortBindings", "DeviceRequests",
}  # fmt: skip


def plan(mount: DatasetMount | None = None, *, publish: bool = True, **more: Any) -> ContainerPlan:
    profile = more.pop("profile", Profile.OPEN_INFERENCE)
    devices = more.pop("devices", ())
    command = VerbHarness(model(profile, **more)).command(
        Verb.DEPLOY_CREATE, generation=3, devices=devices
    )
    return plan_container(command, mount, PlanRules(host_id=HOST, publish=publish))


def test_a_container_is_hardened() -> None:
    config = engine_config(plan(resources=Resources(cpus=1.5, memory="2g")))
    host = config["HostConfig"]
    assert set(config) <= TOP
    assert set(host) <= HOST_CONFIG
    assert config["User"] == "65534:65534"
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges:true"]
    assert host["Privileged"] is False
    assert host["ReadonlyRootfs"] is True
    assert "nosuid" in host["Tmpfs"]["/tmp"]
    assert host["PidsLimit"] == 256
    assert host["Memory"] == host["MemorySwap"] == 2 << 30
    assert host["NanoCpus"] == 1_500_000_000
    assert host["Init"] is True
    assert host["RestartPolicy"]["Name"] == "no"
    assert host["LogConfig"]["Config"] == {"max-size": "10m", "max-file": "3"}
    assert host["NetworkMode"] == "modelyard"
    assert host["PortBindings"] == {"8080/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}]}


def test_name_and_labels_are_made_from_the_command() -> None:
    made = plan()
    assert made.name == "modelyard-job-1-3"
    labels = made.labels.as_labels()
    assert labels["modelyard.host"] == HOST
    assert labels["modelyard.job"] == "job-1"
    assert labels["modelyard.generation"] == "3"
    assert labels["modelyard.ready"] == "/v2/models/m-1/ready"
    assert len(labels["modelyard.spec"]) == 16


def test_equal_specs_have_one_hash_and_others_another() -> None:
    assert plan().labels.spec == plan().labels.spec
    assert plan().labels.spec != plan(env={"A": "b"}).labels.spec


def test_a_uid_alone_never_gets_the_group_root() -> None:
    assert plan(user="1000").user == "1000:1000"


def test_placeholders_are_filled_once_and_other_braces_stay() -> None:
    made = plan(
        DatasetMount("volume", "v", "/data"),
        command=("run", "{model}", "{dataset}/x", "{other}", "{0}"),
        env={"M": "{model}{model}"},
        model_name="n",
    )
    assert made.command == ("run", "n", "/data/x", "{other}", "{0}")
    assert made.env == {"HOME": "/tmp", "M": "nn"}


def test_a_dataset_is_the_only_mount_and_read_only() -> None:
    mounts = engine_config(plan(DatasetMount("bind", "/srv/d", "/data")))["HostConfig"]["Mounts"]
    assert [(m["Type"], m["Source"], m["Target"], m["ReadOnly"]) for m in mounts] == [
        ("bind", "/srv/d", "/data", True)
    ]
    assert engine_config(plan())["HostConfig"]["Mounts"] == []


def test_a_volume_is_not_filled_from_the_image() -> None:
    mounts = engine_config(plan(DatasetMount("volume", "v", "/data")))["HostConfig"]["Mounts"]
    assert mounts[0]["VolumeOptions"] == {"NoCopy": True}


@pytest.mark.parametrize(
    ("result_file", "volume"), [("/tmp/a/r.json", "/tmp"), ("/out/r.json", "/out"), ("/r", None)]
)
def test_a_result_file_outlives_its_process(result_file: str, volume: str | None) -> None:
    made = plan(profile=Profile.BATCH, result_file=result_file)
    host = engine_config(made)["HostConfig"]
    volumes = [m["Target"] for m in host["Mounts"] if m["Type"] == "volume"]
    assert volumes == ([volume] if volume else [])
    assert ("/tmp" in host.get("Tmpfs", {})) is (volume != "/tmp")


def test_gpus_are_asked_for_only_where_the_model_needs_them() -> None:
    assert "DeviceRequests" not in engine_config(plan())["HostConfig"]
    bound = plan(resources=Resources(gpus=2), devices=("GPU-b", "GPU-c"))
    asked = engine_config(bound)["HostConfig"]["DeviceRequests"]
    assert asked == [
        {"Driver": "nvidia", "DeviceIDs": ["GPU-b", "GPU-c"], "Capabilities": [["gpu"]]}
    ]


def test_a_container_never_gets_gpus_that_nobody_has_bound() -> None:
    with pytest.raises(ModelyardError, match="needs 2 GPUs and the command names 1"):
        plan(resources=Resources(gpus=2), devices=("GPU-b",))


def test_on_the_network_no_port_is_published() -> None:
    config = engine_config(plan(publish=False))
    assert "PortBindings" not in config["HostConfig"]
    assert config["ExposedPorts"] == {"8080/tcp": {}}


def test_a_batch_has_no_port() -> None:
    config = engine_config(plan(profile=Profile.BATCH))
    assert "ExposedPorts" not in config
    assert "PortBindings" not in config["HostConfig"]


@pytest.mark.parametrize(
    ("image", "registry", "path"),
    [
        ("busybox", "docker.io", "library/busybox"),
        ("modelyard/probe:local", "docker.io", "modelyard/probe"),
        ("index.docker.io/busybox", "docker.io", "library/busybox"),
        ("localhost/x:1", "localhost", "x"),
        ("Allowed.Example:5000/a/b:tag", "allowed.example:5000", "a/b"),
        ("r.example/a@sha256:" + "0" * 64, "r.example", "a"),
    ],
)
def test_an_image_has_one_full_form(image: str, registry: str, path: str) -> None:
    assert repository_of(image) == Repository(registry, path)


@pytest.mark.parametrize(
    ("image", "full"),
    [
        ("busybox", "docker.io/library/busybox:latest"),
        ("modelyard/digits:local", "docker.io/modelyard/digits:local"),
        ("Allowed.Example:5000/a/b", "allowed.example:5000/a/b:latest"),
        ("r.example/a:1@sha256:" + "0" * 64, "r.example/a@sha256:" + "0" * 64),
        ("0123456789ab", "docker.io/library/0123456789ab:latest"),
    ],
)
def test_an_image_has_one_full_reference(image: str, full: str) -> None:
    assert full_reference(image) == full


@pytest.mark.parametrize(
    "wrong",
    [
        {"image": "sha256:" + "0" * 64},
        {"image": "0" * 64},
        {"image": "0123456789ab"},
        {"resources": {"cpus": 1e-10}},
        {"dataset_mount": "//data"},
        {"dataset_mount": "/"},
        {"dataset_mount": "/./."},
        {"profile": Profile.BATCH, "result_file": "/data/r.json"},
        {"profile": Profile.BATCH, "result_file": "/out/../data/a/r.json"},
    ],
)
def test_a_model_that_could_not_run_is_refused_in_the_catalog(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        model(**wrong)


@pytest.mark.parametrize(
    "right",
    [
        {"image": "0123456789ab:1"},
        {"image": "r.example/0123456789ab"},
        {"image": "facade"},
        {"resources": {"cpus": 0.01}},
        {"profile": Profile.BATCH, "result_file": "/data2/r.json"},
        {"profile": Profile.BATCH, "result_file": "/data/r.json", "dataset_mount": None},
    ],
)
def test_what_only_looks_like_it_is_not_refused(right: dict[str, Any]) -> None:
    assert model(**right).name == "m-1"


@pytest.mark.parametrize(
    ("image", "allowed"),
    [
        ("allowed.example/x", True),
        ("allowed.example/team/x:1", True),
        ("ALLOWED.example/x", True),
        ("evil.example/x", False),
        ("allowed.example.evil.example/x", False),
        ("evil.example/allowed.example/x", False),
        ("allowed.example:5000/x", False),
        ("allowed/x", False),
        ("x", False),
    ],
)
def test_the_allow_list_matches_the_parsed_reference(image: str, *, allowed: bool) -> None:
    assert AllowList(["allowed.example/*"]).allows(image) is allowed


@pytest.mark.parametrize(
    ("pattern", "image", "allowed"),
    [
        ("*", "anything.example/x:1", True),
        ("modelyard/*", "modelyard/probe:local", True),
        ("modelyard/*", "docker.io/modelyard/probe", True),
        ("modelyard/*", "modelyardx/probe", False),
        ("busybox", "docker.io/library/busybox:1", True),
        ("busybox", "busybox2", False),
        ("r.example/team/*", "r.example/team2/x", False),
        ("docker.io/*", "busybox", True),
        ("docker.io/*", "modelyard/probe:local", True),
        ("index.docker.io/*", "modelyard/probe", True),
        ("docker.io/*", "r.example/x", False),
        ("localhost:5000/*", "localhost:5000/a/b", True),
        ("r.example/team/x", "r.example/team/x:9", True),
    ],
)
def test_patterns_name_a_repository_or_a_folder(pattern: str, image: str, *, allowed: bool) -> None:
    assert AllowList([pattern]).allows(image) is allowed


@pytest.mark.parametrize("pattern", ["", "a*", "*/x", "r.example/x:1", "a b", "r.example/*/x"])
def test_a_pattern_that_could_not_match_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="not an image pattern"):
        AllowList([pattern])


def test_a_container_that_is_not_ours_has_no_labels_and_no_address() -> None:
    document = ContainerDocument.model_validate(
        {
            "Id": "a" * 64,
            "Name": "/other",
            "State": {"Running": True, "StartedAt": "2026-01-01T00:00:00Z"},
            "Config": {"Image": "x", "Labels": {"modelyard.job": "j"}},
        }
    )
    facts = document.facts(publish=True, network="modelyard")
    assert facts.labels is None
    assert facts.address is None


def test_progress_sums_the_layers_that_were_announced() -> None:
    progress = PullProgress()
    lines: list[dict[str, object]] = [
        {"status": "Pulling from x", "id": "latest"},
        {"status": "Downloading", "id": "a", "progressDetail": {"current": 5, "total": 10}},
        {"status": "Downloading", "id": "b", "progressDetail": {"current": 1, "total": 30}},
        {"status": "Download complete", "id": "a"},
        {"status": "Extracting", "id": "a", "progressDetail": {"current": 1, "total": 99}},
    ]
    changed = [progress.take(PullLine.model_validate(line)) for line in lines]
    assert changed == [False, True, True, True, False]
    assert (progress.current, progress.total) == (11, 40)


def test_every_label_of_ours_is_given_so_that_no_image_gives_it() -> None:
    labels = plan(profile=Profile.BATCH, resources=Resources(disk="1g")).labels
    written = labels.as_labels()
    ours = "host job operation generation spec port ready lease disk prefix"
    assert set(written) == {f"modelyard.{name}" for name in ours.split()}
    assert ContainerLabels.parse(written, name=labels.name) == labels


def test_another_prefix_is_in_the_name_and_found_by_its_label() -> None:
    command = VerbHarness().command(Verb.DEPLOY_CREATE)
    planned = plan_container(command, None, PlanRules(host_id=HOST, prefix="modelyard.two"))
    assert planned.name == planned.labels.name == f"modelyard.two-{command.job_id}-1"
    written = planned.labels.as_labels()
    assert ContainerLabels.parse(written, name=planned.name) == planned.labels
    assert ContainerLabels.parse(written, name=f"modelyard-{command.job_id}-1") is None
    forged = written | {"modelyard.prefix": "database"}
    assert ContainerLabels.parse(forged, name=f"database-{command.job_id}-1") is None
    older = {name: value for name, value in written.items() if name != "modelyard.prefix"}
    found = ContainerLabels.parse(older, name=f"modelyard-{command.job_id}-1")
    assert found is not None
    assert found.prefix == "modelyard"


def test_a_home_that_can_be_written_to_is_given_where_nobody_else_gives_one() -> None:
    command = VerbHarness().command(Verb.DEPLOY_CREATE)
    rules = PlanRules(host_id=HOST)
    assert plan_container(command, None, rules).env == {"HOME": "/tmp"}
    of_the_image = ImageFacts(env=frozenset({"PATH", "HOME"}))
    assert plan_container(command, None, rules, of_the_image).env == {}
    assert plan(env={"HOME": "/models"}).env == {"HOME": "/models"}


def test_what_lies_in_tmp_can_be_run_and_has_no_other_rights() -> None:
    options = engine_config(plan())["HostConfig"]["Tmpfs"]["/tmp"].split(",")
    assert {"exec", "nosuid", "nodev"} <= set(options)


@pytest.mark.parametrize(
    ("resources", "shm"),
    [({}, 64 << 20), ({"memory": "32m"}, 32 << 20), ({"memory": "4g", "shm": "2g"}, 2 << 30)],
)
def test_shared_memory_is_as_large_as_the_model_asks(resources: Any, shm: int) -> None:
    made = plan(resources=Resources.model_validate(resources))
    assert engine_config(made)["HostConfig"]["ShmSize"] == shm


def test_the_image_says_by_which_signal_it_ends() -> None:
    assert "StopSignal" not in engine_config(plan())


def test_nothing_below_a_dataset_comes_with_it() -> None:
    mounts = engine_config(plan(DatasetMount("bind", "/srv/d", "/data")))["HostConfig"]["Mounts"]
    assert mounts[0]["BindOptions"] == {"Propagation": "rprivate", "NonRecursive": True}


@pytest.mark.parametrize(
    ("volume", "fits"),
    [("/data", True), ("/data/", True), ("/cache", True), ("/data/cache", False), ("/", False)],
)
def test_a_volume_of_the_image_hides_no_dataset(volume: str, *, fits: bool) -> None:
    command = VerbHarness().command(Verb.DEPLOY_CREATE)
    mount = DatasetMount("bind", "/srv/d", "/data")
    image = ImageFacts(volumes=(volume,))
    if fits:
        plan_container(command, mount, PlanRules(host_id=HOST), image)
        return
    with pytest.raises(ModelyardError, match="declares a volume") as caught:
        plan_container(command, mount, PlanRules(host_id=HOST), image)
    assert caught.value.code is ErrorCode.CREATE_FAILED


def test_an_image_without_a_configuration_brings_nothing() -> None:
    assert ImageDocument.model_validate({"Config": None}).facts() == ImageFacts()
    config = {"Config": {"Volumes": {"/v": {}}, "Env": ["A=b=c"]}}
    assert ImageDocument.model_validate(config).facts() == ImageFacts(("/v",), frozenset("A"))
