"""The requests that each profile sends to its model server: the table of docs/models.md as values.

`open-inference` follows the Open Inference Protocol, version 2, with the model repository
extension, as KServe, Triton and MLServer speak it.
"""

from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from urllib.parse import quote

from pydantic import ValidationError

from modelyard.contract.catalog.entries import Hook, ModelSpec, Probe, Profile
from modelyard.contract.catalog.rules import AS_RECORDED
from modelyard.contract.errors import ErrorCode, ModelyardError
from modelyard.contract.states import Verb
from modelyard.contract.strict_json import dump_json
from modelyard.contract.validation import first_errors
from worker.model_server.templates import INPUT

_ALL_VERBS = frozenset(Verb)
_ONE_SHOT = frozenset({Verb.TEMP, Verb.TERMINATE})


class InMemory(StrEnum):
    """When a model counts as loaded."""

    PROCESS_RUNS = "process_runs"
    SERVER_SAYS_SO = "server_says_so"
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class ServerDialogue:
    """The requests that a worker sends to the containers of one model."""

    verbs: frozenset[Verb]
    in_memory: InMemory
    alive: Probe | None = None
    """What answers 2xx once the server runs."""
    ready: Probe | None = None
    """What answers 2xx while the model is in memory; None if the server can't be asked."""
    load: Hook | None = None
    unload: Hook | None = None
    infer: Hook | None = None
    infer_dataset: Hook | None = None
    """Used in place of `infer` without an input: the model runs over its mounted dataset."""
    may_manage_itself: bool = False
    """True if the server may lack `load` and `unload`, and then loads its model by itself."""

    def inference(self, *, has_input: bool) -> Hook | None:
        """Return the request that runs the model."""
        return self.infer if has_input else (self.infer_dataset or self.infer)


def dialogue_of(spec: ModelSpec) -> ServerDialogue:
    """Return the requests for this model."""
    return _DIALOGUES[spec.profile](spec)


def inventory_label(spec: ModelSpec) -> str | None:
    """Return what a worker probes after its boot to learn if the model is in memory, as a label.

    Without `hooks.ready` it is the alive path. The mistake that this allows is the smaller one: if
    an unloaded model counts as loaded the next INFER fails, but if a loaded one counted as unloaded
    the job would be lost.
    """
    dialogue = dialogue_of(spec)
    probe = dialogue.ready or dialogue.alive
    if probe is None:
        return None
    if not probe.headers and probe.body_contains is None:
        return probe.path
    return dump_json(probe.model_dump(mode="json", exclude_defaults=True))


def probe_in_label(label: str) -> Probe:
    """Return the probe in a container's label; raises `spec_refused` if nobody can have set it."""
    if not label.startswith("{"):
        return Probe.model_construct(path=label, headers={}, body_contains=None)
    try:
        return Probe.model_validate_json(label, context=AS_RECORDED, extra="ignore")
    except ValidationError as error:
        raise ModelyardError(ErrorCode.SPEC_REFUSED, first_errors(error)) from error


def _process(spec: ModelSpec) -> ServerDialogue:
    hooks = spec.hooks
    return ServerDialogue(
        verbs=_ALL_VERBS,
        in_memory=InMemory.PROCESS_RUNS,
        ready=hooks.ready or hooks.alive,
        infer=hooks.infer,
    )


def _http(spec: ModelSpec) -> ServerDialogue:
    hooks = spec.hooks
    return ServerDialogue(
        verbs=_ALL_VERBS,
        in_memory=InMemory.SERVER_SAYS_SO,
        alive=hooks.alive,
        ready=hooks.ready,
        load=hooks.load,
        unload=hooks.unload,
        infer=hooks.infer,
    )


def _open_inference(spec: ModelSpec) -> ServerDialogue:
    return _open_inference_of(spec.served_name)


@lru_cache(maxsize=1_000)
def _open_inference_of(served_name: str) -> ServerDialogue:
    name = quote(served_name, safe="")
    return ServerDialogue(
        verbs=_ALL_VERBS,
        in_memory=InMemory.SERVER_SAYS_SO,
        alive=Probe(path="/v2/health/live"),
        ready=Probe(path=f"/v2/models/{name}/ready"),
        load=Hook(path=f"/v2/repository/models/{name}/load"),
        unload=Hook(path=f"/v2/repository/models/{name}/unload"),
        infer=Hook(path=f"/v2/models/{name}/infer", body=INPUT),
        infer_dataset=Hook(
            path=f"/v2/models/{name}/infer",
            body={"parameters": {"dataset": "{dataset}"}, "inputs": []},
        ),
        may_manage_itself=True,
    )


def _batch(_: ModelSpec) -> ServerDialogue:
    return ServerDialogue(verbs=_ONE_SHOT, in_memory=InMemory.NEVER)


_DIALOGUES = {
    Profile.PROCESS: _process,
    Profile.HTTP: _http,
    Profile.OPEN_INFERENCE: _open_inference,
    Profile.BATCH: _batch,
}
