"""The models of the state machine: one of each profile, and one for each way to go wrong."""

from collections.abc import Mapping

from modelyard.contract.catalog.entries import DatasetSpec, Hook, Hooks, ModelSpec, Profile
from tests.statemachine.engine import Manners

_HOOKS = Hooks(
    load=Hook(path="/load"),
    unload=Hook(path="/unload"),
    infer=Hook(path="/infer", body="{input}"),
    alive="/alive",
    ready="/ready",
)
_PROCESS_HOOKS = Hooks(infer=Hook(path="/infer", body="{input}"), alive="/alive", ready="/alive")


def _open(name: str, **more: object) -> ModelSpec:
    return ModelSpec.model_validate(
        {
            "name": name,
            "image": f"models/{name}",
            "profile": Profile.OPEN_INFERENCE,
            "port": 8080,
            "load_timeout_s": 20.0,
            "start_timeout_s": 10.0,
            **more,
        }
    )


MODELS: Mapping[str, ModelSpec] = {
    one.name: one
    for one in (
        _open(
            "open",
            max_concurrency=2,
            resources={"gpus": 1, "gpu_memory": "5g"},
            residency={"on_demand": True, "min_resident_s": 1.0},
        ),
        _open(
            "http",
            profile=Profile.HTTP,
            hooks=_HOOKS,
            resources={"gpus": 1},
            residency={"on_demand": True, "idle_unload_s": 6.0, "min_resident_s": 0.0},
        ),
        _open("process", profile=Profile.PROCESS, hooks=_PROCESS_HOOKS, stop_grace_s=1.0),
        ModelSpec(name="batch", image="models/batch", profile=Profile.BATCH),
        _open(
            "steady",
            restart="on_failure",
            on_host_lost="recreate",
            max_restarts=2,
            resources={"gpus": 1, "gpu_memory": "3g"},
        ),
        _open("recreated", on_host_lost="recreate"),
        _open("restarted", profile=Profile.HTTP, hooks=_HOOKS, restart="on_failure"),
        _open(
            "small",
            resources={"gpus": 1, "gpu_memory": "2g", "resident_memory": "600m"},
            residency={"on_demand": True, "min_resident_s": 1.0},
        ),
        _open("refusing", residency={"on_demand": True}),
        _open(
            "pinned",
            resources={"gpus": 1, "gpu_memory": "5g"},
            residency={"on_demand": True, "pinned": True, "min_resident_s": 0.0},
        ),
        _open(
            "bound",
            resources={"gpus": 1, "gpu_memory": "5g"},
            residency={"on_demand": True, "relocate": False},
        ),
        _open("stillborn"),
        _open("fragile", restart="on_failure", max_restarts=1),
        _open("missing"),
    )
}
"""By name."""
MANNERS: Mapping[str, Manners] = {
    "open": Manners(takes_s=1.0),
    "http": Manners(takes_s=0.1),
    "process": Manners(takes_s=3.0),
    "batch": Manners(takes_s=12.0),
    "steady": Manners(takes_s=2.0),
    "recreated": Manners(takes_s=10.0),
    "restarted": Manners(takes_s=0.5),
    "refusing": Manners(load_status=500),
    "pinned": Manners(takes_s=0.5),
    "bound": Manners(takes_s=0.5),
    "small": Manners(takes_s=1.0, takes=600 << 20),
    "stillborn": Manners(start_exit=1),
    "fragile": Manners(dies_of_inference=True),
}
"""By model; `missing` has an image that is nowhere."""
PULLED = frozenset({"steady", "batch"})
"""Models whose image is in the registry, and on no host at first."""
DATASETS = (DatasetSpec(name="volume", volume="volume"),)
