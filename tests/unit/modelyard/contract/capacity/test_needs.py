"""What a model needs: what it declares, and what was learned of it."""

from typing import Any

import pytest
from pydantic import ValidationError

from modelyard.contract.capacity.footprints import NOTHING_LEARNED, Learned
from modelyard.contract.capacity.needs import (
    container_need,
    holds_while_loaded,
    need_beside,
    resident_need,
)
from modelyard.contract.catalog.entries import ModelSpec, Resources
from modelyard.contract.catalog.rules import AS_RECORDED
from modelyard.contract.validation import error_list

GIB = 1 << 30
H100, A100 = "H100", "A100"


def spec(**resources: Any) -> ModelSpec:
    return ModelSpec.model_validate(
        {"name": "m", "image": "x/y", "profile": "open-inference", "port": 1}
        | {"resources": {"memory": "8g", **resources}}
    )


@pytest.mark.parametrize(
    ("declared", "learned", "resident", "container"),
    [
        pytest.param(None, None, 0, 8, id="not kept apart"),
        pytest.param(None, 5, 0, 8, id="not kept apart, whatever is learned"),
        pytest.param("3g", None, 3, 5, id="declared"),
        pytest.param("3g", 2, 3, 5, id="less than declared"),
        pytest.param("3g", 5, 5, 3, id="more than declared"),
        pytest.param("auto", None, 8, 0, id="nothing known"),
        pytest.param("auto", 2, 2, 6, id="learned"),
        pytest.param("auto", 0, 0, 8, id="learned to be nothing"),
        pytest.param("auto", 9, 8, 0, id="under a higher limit than now"),
        pytest.param("3g", 9, 8, 0, id="declared, and under a higher limit than now"),
    ],
)
def test_host_memory_is_split_by_the_larger_one_of_declared_and_learned(
    declared: str | None, learned: int | None, resident: int, container: int
) -> None:
    of = spec(resident_memory=declared)
    known = Learned(None if learned is None else learned * GIB)
    assert resident_need(of, known).memory == resident * GIB
    assert container_need(of, known).memory == container * GIB


@pytest.mark.parametrize(
    ("declared", "learned", "needs"),
    [
        pytest.param(0, (), None, id="whole devices"),
        pytest.param(0, ((H100, 9),), None, id="whole devices, whatever is learned"),
        pytest.param(4, (), 4, id="declared"),
        pytest.param(4, ((H100, 3),), 4, id="less than declared"),
        pytest.param(4, ((H100, 9),), 9, id="more than declared"),
        pytest.param(4, ((A100, 9),), 4, id="more on another kind"),
        pytest.param("auto", (), None, id="nothing known"),
        pytest.param("auto", ((A100, 9),), None, id="nothing known of this kind"),
        pytest.param("auto", ((A100, 9), (H100, 3)), 3, id="learned"),
    ],
)
def test_a_device_is_needed_as_far_as_declared_or_learned_on_its_kind(
    declared: int | str, learned: tuple[tuple[str, int], ...], needs: int | None
) -> None:
    need = resident_need(spec(gpus=1, gpu_memory=declared), Learned(devices=learned))
    assert need.on(H100) == needs


def test_what_people_read_says_what_was_measured() -> None:
    learned = Learned(devices=((H100, 9 * GIB),))
    declares = resident_need(spec(gpus=1, gpu_memory="4g"), learned)
    assert declares.text_on(H100) == "9 GiB (measured; 4 GiB declared)"
    assert declares.text_on(A100) == "4 GiB"
    auto = resident_need(spec(gpus=1, gpu_memory="auto"), learned)
    assert auto.text_on(H100) == "9 GiB (measured)"
    assert auto.text_on(A100) == "all of it"


@pytest.mark.parametrize("declared", ["3g", "auto"])
@pytest.mark.parametrize("then", [None, 1, 6])
@pytest.mark.parametrize("now", [None, 1, 6])
def test_a_loaded_model_and_its_container_hold_all_memory_whenever_each_was_decided(
    declared: str, then: int | None, now: int | None
) -> None:
    of = spec(resident_memory=declared)
    created = container_need(of, Learned(then and then * GIB))
    loaded = need_beside(of, Learned(now and now * GIB), created.memory)
    assert created.memory + loaded.memory == 8 * GIB


def test_memory_that_is_not_kept_apart_is_not_taken_by_a_load() -> None:
    assert need_beside(spec(gpus=1), NOTHING_LEARNED, 0).memory == 0


@pytest.mark.parametrize(
    ("resources", "holds"),
    [({}, False), ({"gpus": 1}, True), ({"resident_memory": "auto"}, True),
     ({"resident_memory": 0}, False), ({"resident_memory": 1}, True)],
)  # fmt: skip
def test_what_a_load_may_take_does_not_depend_on_what_is_learned(
    resources: dict[str, Any], *, holds: bool
) -> None:
    assert holds_while_loaded(spec(**resources)) is holds


@pytest.mark.parametrize(
    ("resources", "pointer", "message"),
    [
        ({"gpus": 1, "gpu_memory": "automatic"}, "/gpu_memory", 'or "auto"'),
        ({"gpus": 1, "gpu_memory": 1.5}, "/gpu_memory", 'or "auto"'),
        ({"gpus": 1, "gpu_memory": True}, "/gpu_memory", 'or "auto"'),
        ({"gpus": 1, "gpu_memory": 1 << 51}, "/gpu_memory", 'or "auto"'),
        ({"gpu_memory": "auto"}, "/gpu_memory", "needs gpus"),
        ({"resident_memory": "auto"}, "/memory", "must say how much"),
        ({"memory": "1g", "resident_memory": "2g"}, "/resident_memory", "can't be more"),
    ],
)
def test_a_size_that_is_none_has_one_fault(
    resources: dict[str, Any], pointer: str, message: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        Resources.model_validate(resources)
    (fault,) = error_list(caught.value)
    assert fault["pointer"] == pointer
    assert message in fault["message"]


def test_auto_is_read_as_it_was_stored() -> None:
    given = Resources(memory=GIB, resident_memory="auto", gpus=1, gpu_memory="auto")
    text = given.model_dump_json()
    assert Resources.model_validate_json(text, context=AS_RECORDED) == given
    assert Resources.model_validate_json(text) == given
