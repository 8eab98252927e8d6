"""Locality: hosts that have what a job needs go first, as far as the policy lets them."""

import pytest

from modelyard.contract.capacity.footprints import NOTHING_LEARNED
from modelyard.contract.capacity.ledger import Allocation
from modelyard.contract.catalog.entries import DatasetSpec
from modelyard.contract.states import JobState, Verb
from modelyard.scheduling.explaining import explain_in_line
from modelyard.scheduling.fitting import PlacementRequest
from modelyard.scheduling.locality import to_fetch
from modelyard.scheduling.placement import FreeCapacity, Placed, PlacementPolicy
from modelyard.store.records import HostRecord
from tests.support.scheduling import catalog, facts, host, job, operation, spec

IMAGE = "docker.io/x/y:latest"
NEED = PlacementRequest(job_id="j", image=IMAGE, dataset="ds")


def there(name: str, *, images: str = "", datasets: str = "", used: float = 0.0) -> HostRecord:
    """Return a host of 8 processors, of which a part is used."""
    held = Allocation(job_id=f"of-{name}", generation=1, millicpus=round(used * 8_000))
    return host(
        *([held] if used else []),
        host_id=name,
        images=frozenset(filter(None, [images])),
        datasets=frozenset(filter(None, [datasets])),
    )


def taken(
    *hosts: HostRecord,
    need: PlacementRequest = NEED,
    policy: PlacementPolicy = PlacementPolicy.BINPACK,
) -> str:
    found = FreeCapacity({one.host_id: one for one in hosts}, policy=policy).place(need)
    assert isinstance(found, Placed)
    return found.host.host_id


def test_the_image_goes_before_none_and_image_with_dataset_before_the_image_alone() -> None:
    bare, image = there("a", datasets="ds", used=0.5), there("b", images=IMAGE)
    both = there("c", images=IMAGE, datasets="ds")
    assert taken(bare, image, both) == "c"
    assert taken(bare, image) == "b"
    assert taken(bare, there("z")) == "a"


def test_a_host_where_an_attempt_failed_is_not_taken_for_its_image() -> None:
    need = PlacementRequest(job_id="j", image=IMAGE, avoid=frozenset({"b"}))
    assert taken(there("a"), there("b", images=IMAGE), need=need) == "a"


def test_a_host_without_room_is_not_taken_for_its_image() -> None:
    assert taken(there("a"), host(host_id="b", slots=0, images=frozenset({IMAGE}))) == "a"


@pytest.mark.parametrize(
    ("policy", "wanted"), [(PlacementPolicy.BINPACK, "b"), (PlacementPolicy.SPREAD, "a")]
)
def test_of_hosts_that_have_the_image_the_policy_chooses(
    policy: PlacementPolicy, wanted: str
) -> None:
    hosts = [there("a", images=IMAGE, used=0.1), there("b", images=IMAGE, used=0.2), there("c")]
    assert taken(*hosts, policy=policy) == wanted


def test_spreading_does_not_fill_the_first_host_that_has_the_image() -> None:
    first = there("a", images=IMAGE, used=0.2)
    assert taken(first, there("b"), policy=PlacementPolicy.SPREAD) == "a"
    fuller = there("a", images=IMAGE, used=0.3)
    assert taken(fuller, there("b"), policy=PlacementPolicy.SPREAD) == "b"
    assert taken(fuller, there("b"), policy=PlacementPolicy.BINPACK) == "a"


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("x/y", "docker.io/x/y:latest"),
        ("y:1", "docker.io/library/y:1"),
        ("reg.example/y:1@sha256:" + "a" * 64, "reg.example/y@sha256:" + "a" * 64),
    ],
)
def test_an_image_is_looked_for_by_its_full_reference(image: str, name: str) -> None:
    need = PlacementRequest.of(job(), spec(image=image), NOTHING_LEARNED, at_once=False)
    assert to_fetch(there("h", images=name), need) == ()
    assert to_fetch(there("h", images="docker.io/library/other:1"), need) == ("image",)


@pytest.mark.parametrize(
    ("dataset", "place"), [({"path": "/data//sets/./a/"}, "/data/sets/a"), ({"volume": "v"}, "v")]
)
def test_a_dataset_is_looked_for_by_its_volume_or_its_folder(
    dataset: dict[str, str], place: str
) -> None:
    found = DatasetSpec.model_validate({"name": "d"} | dataset)
    need = PlacementRequest.of(job(), spec(), NOTHING_LEARNED, at_once=False, dataset=found)
    assert to_fetch(there("h", images=IMAGE, datasets=place), need) == ()
    assert to_fetch(there("h", images=IMAGE, datasets="w"), need) == ("dataset",)
    unmounted = spec(dataset_mount=None)
    need = PlacementRequest.of(job(), unmounted, NOTHING_LEARNED, at_once=False, dataset=found)
    assert to_fetch(there("h", images=IMAGE), need) == ()


def test_an_explanation_says_where_the_image_is_and_what_would_have_to_be_pulled() -> None:
    one, new = operation(Verb.TEMP), job(JobState.NONE, host_id=None, generation=0)
    hosts = (there("a", used=0.5), there("b", images=IMAGE))
    found = explain_in_line(facts(one, of=new, catalog=catalog(spec()), hosts=hosts))
    assert found.reasons == (
        "The dispatcher is about to send it to host b.",
        "Host b has its image.",
    )
    assert {one.host_id: one.to_fetch for one in found.hosts} == {"a": ("image",), "b": ()}
    alone = explain_in_line(facts(one, of=new, catalog=catalog(spec()), hosts=hosts[:1]))
    assert alone.reasons[1] == "Host a is not known to have its image, so it may pull it first."
