"""Entries may be written in a short form; they are read, shown and hashed alike."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from modelyard.contract.catalog.entries import Hook, ModelSpec, Probe
from modelyard.contract.catalog.rules import AS_RECORDED


def entry(**more: Any) -> ModelSpec:
    fields: dict[str, Any] = {
        "name": "m",
        "image": "a/b:1",
        "profile": "http",
        "port": 80,
        "hooks": {"load": "/load", "unload": {"path": "/unload"}, "infer": "/predict"},
    }
    return ModelSpec.model_validate({**fields, **more})


def test_a_hook_may_be_only_its_path() -> None:
    hooks = entry().hooks
    assert hooks.load == Hook(path="/load")
    assert hooks.unload == Hook(path="/unload")
    assert hooks.infer == Hook(path="/predict", body="{input}")


def test_a_probe_of_a_path_alone_is_shown_and_stored_as_that_path() -> None:
    hooks = {"infer": "/predict", "load": "/l", "unload": "/u", "ready": {"path": "/r"}}
    told = json.loads(entry(hooks=hooks).model_dump_json())
    assert (told["hooks"]["alive"], told["hooks"]["ready"]) == ("/", "/r")
    assert ModelSpec.model_validate(told) == entry(hooks=hooks)


def test_a_probe_with_headers_and_a_text_comes_back_whole() -> None:
    probe = {"path": "/v1/models", "headers": {"Authorization": "Bearer t"}, "body_contains": "ü"}
    hooks = {"infer": "/predict", "load": "/l", "unload": "/u", "ready": probe}
    spec = entry(hooks=hooks)
    assert spec.hooks.ready == Probe(
        path="/v1/models", headers={"Authorization": "Bearer t"}, body_contains="ü"
    )
    stored = spec.model_dump_json()
    assert ModelSpec.model_validate_json(stored, context=AS_RECORDED, extra="ignore") == spec
    assert json.loads(spec.model_dump_json(exclude_unset=True))["hooks"]["ready"] == probe


@pytest.mark.parametrize(
    ("hooks", "where"),
    [
        ({"load": "no/slash"}, ("hooks", "load", "path")),
        ({"alive": 7}, ("hooks", "alive")),
        ({"ready": {"path": "/r", "body_contains": ""}}, ("hooks", "ready", "body_contains")),
        ({"ready": {"path": "/r", "headers": {"a b": "c"}}}, ("hooks", "ready", "headers")),
    ],
)
def test_a_fault_in_a_short_form_is_named_where_it_is(
    hooks: dict[str, Any], where: tuple[str, ...]
) -> None:
    given = {"load": "/l", "unload": "/u", "infer": "/i", **hooks}
    with pytest.raises(ValidationError) as caught:
        entry(hooks=given)
    assert caught.value.errors()[0]["loc"][: len(where)] == where


@pytest.mark.parametrize("name", ["org/model:tag", "Qwen/Qwen2.5-0.5B", "llama3:8b", "a"])
def test_a_model_may_be_known_by_its_name_on_a_hub(name: str) -> None:
    assert entry(model_name=name).served_name == name


@pytest.mark.parametrize("name", ["/a", "a//b", "a/../b", "a:b:c", "a/", "a:", "a" * 257, "a b"])
def test_other_names_of_a_model_are_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="model_name"):
        entry(model_name=name)


def test_without_an_entrypoint_the_command_runs_and_has_to_be_there() -> None:
    assert entry(entrypoint=[], command=["serve"]).entrypoint == ()
    with pytest.raises(ValidationError, match="command says what runs"):
        entry(entrypoint=[])


def test_only_a_batch_says_what_its_result_is() -> None:
    batch: dict[str, Any] = {
        "profile": "batch",
        "port": None,
        "hooks": {},
        "result_type": "image/png",
    }
    assert entry(**batch).result_type == "image/png"
    with pytest.raises(ValidationError, match="result_type"):
        entry(result_type="image/png")
    with pytest.raises(ValidationError, match="result_type"):
        entry(**{**batch, "result_type": "png"})
