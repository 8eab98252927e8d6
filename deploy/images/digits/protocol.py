"""The Open Inference Protocol (KServe's V2, REST) as values: JSON in, JSON out, no I/O.

Source: the Open Inference Protocol specification, REST, with the model repository
extension for load and unload. Errors are `{"error": "..."}` with the status that says whose
fault it is; nothing a client can send ends in a 500.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

MODEL_NAME = "digits"
MODEL_VERSION = "1"
PIXELS = 64
MAX_ROWS = 10_000
DATATYPES = ("FP32", "FP64")
OUTPUTS = ("label", "probability")

_KINDS = {list: "a list", str: "a string", type(None): "null"}

Row = list[float]


class ProtocolError(Exception):
    """The request cannot be answered; `status` is the HTTP status that says why."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class Prediction(NamedTuple):
    """One row's answer: the digit, and how sure the model is of it (0 to 1)."""

    label: int
    probability: float


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A checked request: either `rows`, or the path of a `dataset` to run over."""

    rows: list[Row]
    dataset: str | None
    request_id: str | None
    wanted: tuple[str, ...]


def decode(raw: bytes) -> object:
    """Parse a body as strict JSON (no NaN, no Infinity); an empty one is an empty object."""
    if not raw.strip():
        return {}
    try:
        parsed: object = json.loads(raw, parse_constant=_refuse_constant)
    except RecursionError:
        raise _bad("The body is nested too deeply.") from None
    except ValueError as error:
        raise _bad(f"The body is not JSON: {error}.") from None
    return parsed


def parse_infer(body: object) -> InferRequest:
    """Check an infer request; raises `ProtocolError` (400) with one sentence that says what."""
    request = _object(body, "The body")
    parameters = _object(request.get("parameters", {}), "'parameters'")
    dataset = parameters.get("dataset")
    if dataset is not None and not (isinstance(dataset, str) and dataset):
        raise _bad("'parameters.dataset' must be a path.")
    request_id = request.get("id")
    if request_id is not None and not isinstance(request_id, str):
        raise _bad("'id' must be a string.")
    inputs = request.get("inputs", [] if dataset else None)
    if not isinstance(inputs, list):
        raise _bad("'inputs' must be a list of tensors.")
    if dataset and inputs:
        raise _bad("Give either 'parameters.dataset' or 'inputs', not both.")
    if not dataset and len(inputs) != 1:
        raise _bad(f"'inputs' must hold exactly one tensor, not {len(inputs)}.")
    return InferRequest(
        rows=[] if dataset else _rows(inputs[0]),
        dataset=dataset,
        request_id=request_id,
        wanted=_wanted(request.get("outputs")),
    )


def infer_response(
    predictions: Sequence[Prediction],
    request: InferRequest,
    parameters: dict[str, float] | None = None,
) -> dict[str, object]:
    """Build the answer to an infer request; `parameters` go along when they are given."""
    tensors: dict[str, dict[str, object]] = {
        "label": {"datatype": "INT64", "data": [p.label for p in predictions]},
        "probability": {"datatype": "FP64", "data": [p.probability for p in predictions]},
    }
    response: dict[str, object] = {"model_name": MODEL_NAME, "model_version": MODEL_VERSION}
    if request.request_id is not None:
        response["id"] = request.request_id
    if parameters is not None:
        response["parameters"] = parameters
    response["outputs"] = [
        {"name": name, "shape": [len(predictions)], **tensors[name]} for name in request.wanted
    ]
    return response


def server_metadata() -> dict[str, object]:
    return {"name": "digits-server", "version": MODEL_VERSION, "extensions": ["model_repository"]}


def model_metadata() -> dict[str, object]:
    return {
        "name": MODEL_NAME,
        "versions": [MODEL_VERSION],
        "platform": "scikit-learn",
        "inputs": [{"name": "pixels", "datatype": "FP64", "shape": [-1, PIXELS]}],
        "outputs": [
            {"name": "label", "datatype": "INT64", "shape": [-1]},
            {"name": "probability", "datatype": "FP64", "shape": [-1]},
        ],
    }


def repository_index(*, loaded: bool, only_ready: bool) -> list[dict[str, object]]:
    if only_ready and not loaded:
        return []
    state, reason = ("READY", "") if loaded else ("UNAVAILABLE", "not loaded")
    return [{"name": MODEL_NAME, "version": MODEL_VERSION, "state": state, "reason": reason}]


def wants_only_ready(body: object) -> bool:
    """Whether a repository index request asks for the ready models only."""
    only_ready = _object(body, "The body").get("ready", False)
    if not isinstance(only_ready, bool):
        raise _bad("'ready' must be true or false.")
    return only_ready


def check_model(name: str) -> None:
    """Refuse every model name but ours (404)."""
    if name != MODEL_NAME:
        raise ProtocolError(404, f"There is no model {name[:128]!r} here, only {MODEL_NAME!r}.")


def _rows(tensor: object) -> list[Row]:
    fields = _object(tensor, "The input tensor")
    if not isinstance(fields.get("name"), str):
        raise _bad("The input tensor needs a 'name'.")
    if fields.get("datatype") not in DATATYPES:
        raise _bad(f"The input's 'datatype' must be one of {', '.join(DATATYPES)}.")
    count = _row_count(fields.get("shape"))
    numbers = _flat(fields.get("data"), count)
    return [numbers[start : start + PIXELS] for start in range(0, count * PIXELS, PIXELS)]


def _row_count(shape: object) -> int:
    expected = f"The input's 'shape' must be [rows, {PIXELS}] (a digit is 8 x 8 pixels)"
    if not isinstance(shape, list) or not all(type(size) is int for size in shape):
        raise _bad(f"{expected}.")
    if len(shape) != 2 or shape[1] != PIXELS:  # noqa: PLR2004 - rows and pixels
        raise _bad(f"{expected}, not {json.dumps(shape)[:80]}.")
    count: int = shape[0]
    if not 1 <= count <= MAX_ROWS:
        raise _bad(f"The input must hold between 1 and {MAX_ROWS} rows.")
    return count


def _flat(data: object, count: int) -> Row:
    """Row-major numbers, given flat or as one list for each row (the protocol allows both)."""
    if not isinstance(data, list):
        raise _bad("The input's 'data' must be a list of numbers.")
    if data and all(isinstance(row, list) for row in data):
        if len(data) != count or any(len(row) != PIXELS for row in data):
            raise _bad(f"The input's 'data' is not {count} rows of {PIXELS} as its 'shape' says.")
        data = [number for row in data for number in row]
    if len(data) != count * PIXELS:
        raise _bad(
            f"The input's 'data' holds {len(data)} numbers; "
            f"its 'shape' [{count}, {PIXELS}] asks for {count * PIXELS}."
        )
    return [_number(value, index) for index, value in enumerate(data)]


def _number(value: object, index: int) -> float:
    if type(value) is not int and type(value) is not float:
        raise _bad(f"The input's 'data' must hold numbers; at {index} it does not.")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise _bad(f"The input's 'data' must hold finite numbers; at {index} it does not.")
    return number


def _wanted(outputs: object) -> tuple[str, ...]:
    if outputs is None:
        return OUTPUTS
    if not isinstance(outputs, list):
        raise _bad("'outputs' must be a list.")
    names = [_object(output, "An output").get("name") for output in outputs]
    for name in names:
        if name not in OUTPUTS:
            raise _bad(f"An output's 'name' must be one of {', '.join(OUTPUTS)}.")
    return tuple(name for name in OUTPUTS if not names or name in names)


def _object(value: object, what: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise _bad(f"{what} must be a JSON object, not {_KINDS.get(type(value), 'a scalar')}.")
    return value


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _bad(sentence: str) -> ProtocolError:
    return ProtocolError(400, sentence)
