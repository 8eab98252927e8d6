"""What a catalog entry may say: each rule at the door, with the place of what breaks it."""

from typing import Any

import pytest
from pydantic import ValidationError

from modelyard.contract.catalog.entries import ModelSpec
from modelyard.contract.validation import error_list

OPEN = {"name": "m", "profile": "open-inference", "port": 8080, "image": "x/y"}


def pointer_of(fields: dict[str, Any]) -> str:
    """Return where the only fault of a model is."""
    with pytest.raises(ValidationError) as caught:
        ModelSpec.model_validate(OPEN | fields)
    (fault,) = error_list(caught.value)
    return fault["pointer"]


@pytest.mark.parametrize(
    ("pointer", "values"),
    [
        ("/read_only", ["no", 0, 1, "true", None]),
        ("/resources/cpus", [True, "1", "1e3"]),
        ("/resources/gpus", [True, 1.0, "1"]),
        ("/resources/memory", [True, 1e9]),
        ("/resources/shm", [True, 1e6]),
        ("/port", [True, 8080.0, "8080"]),
        ("/max_concurrency", [True, 2.0, "2"]),
        ("/max_restarts", [True, 2.0, "2"]),
        ("/start_timeout_s", [True, "5"]),
        ("/load_timeout_s", [False, "5"]),
        ("/stop_grace_s", [False, "5"]),
        ("/profile", [True, 1]),
        ("/user", [1000, True]),
    ],
)
def test_a_value_is_what_it_is_and_never_another_one_that_was_meant(
    pointer: str, values: list[object]
) -> None:
    for value in values:
        *outer, field = pointer.lstrip("/").split("/")
        fields: dict[str, Any] = {outer[0]: {field: value}} if outer else {field: value}
        assert pointer_of(fields) == pointer


def test_a_whole_number_is_a_number_of_processors() -> None:
    assert ModelSpec.model_validate(OPEN | {"resources": {"cpus": 2}}).resources.cpus == 2


@pytest.mark.parametrize(
    "image",
    [
        "MyOrg/model:1",
        "r.example/Team/m",
        "Busybox",
        "LOCALHOST/x",
        "my_host.example/x",
        "-r.example/x",
        "r..example/x",
        "r.example/x_-y",
        "r.example/",
        "a//b",
        "x:",
        "x:1:2",
        "r.example:port/x",
        "x@sha256:" + "A" * 64,
        "r.example/" + "x" * 256,
        "x y",
        "x\n",
        "../x",
        "r.example/../images",
    ],
)
def test_what_no_engine_reads_as_an_image_is_refused(image: str) -> None:
    assert pointer_of({"image": image}) == "/image"


@pytest.mark.parametrize(
    "image",
    [
        "busybox",
        "R.Example:5000/team/m:Tag-1",
        "localhost/x",
        "localhost:5000/a/b",
        "a.b/c__d/e--f.g:1@sha256:" + "0" * 64,
    ],
)
def test_what_an_engine_reads_as_an_image_is_taken(image: str) -> None:
    assert ModelSpec.model_validate(OPEN | {"image": image}).image == image


@pytest.mark.parametrize(
    "user",
    ["0", "0:1", "65534:0", "65534:00", "01", "4294967295", "1:2147483648", "root", ""],
)
def test_nobody_is_root_or_in_its_group(user: str) -> None:
    assert pointer_of({"user": user}) == "/user"


@pytest.mark.parametrize(
    "mount",
    [
        "/tmp", "/tmp/", "/tmp/data", "/x/../tmp", "/proc",
        "/proc/x", "/sys/fs", "/dev", "/dev/shm",
        "/etc", "/etc/hosts", "/etc/resolv.conf/x", "/sbin",
    ],
)  # fmt: skip
def test_a_dataset_lies_over_nothing_and_under_nothing_else(mount: str) -> None:
    assert pointer_of({"dataset_mount": mount}) == "/dataset_mount"


@pytest.mark.parametrize("mount", ["/tmpx", "/etc/models", "/home/data", "/device", "/data"])
def test_a_dataset_may_lie_anywhere_else(mount: str) -> None:
    assert ModelSpec.model_validate(OPEN | {"dataset_mount": mount}).dataset_mount == mount


@pytest.mark.parametrize(
    ("result_file", "mount", "pointer"),
    [
        ("/out/r.json", "/out/data", "/dataset_mount"),
        ("/data/out/r.json", "/data", "/result_file"),
        ("/data/r.json", "/data/set", "/dataset_mount"),
        ("/dev/shm/r.json", None, "/result_file"),
        ("/proc/r.json", None, "/result_file"),
        ("/etc/r.json", None, "/result_file"),
        ("/", None, "/result_file"),
    ],
)
def test_a_result_file_has_a_folder_of_its_own(
    result_file: str, mount: str | None, pointer: str
) -> None:
    fields = {"profile": "batch", "result_file": result_file, "dataset_mount": mount}
    assert pointer_of(fields) == pointer


@pytest.mark.parametrize("shm", ["1k", "2g"])
def test_shared_memory_is_a_part_of_memory(shm: str) -> None:
    assert pointer_of({"resources": {"memory": "1g", "shm": shm}}) == "/resources/shm"
