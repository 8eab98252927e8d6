"""The sample catalog: a model of digits, and the dataset of digits that it was not trained on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.local.errors import StackError
from deploy.local.images import DIGITS
from modelyard.client import ApiError, Modelyard
from modelyard.contract.errors import ErrorCode

if TYPE_CHECKING:
    from collections.abc import Callable

MODEL = "m-131"
DIGITS_DATASET = "ds-550"
DIGITS_MODEL = {
    "name": MODEL,
    "image": DIGITS,
    "profile": "open-inference",
    "port": 8080,
    "model_name": "digits",
    "resources": {"cpus": 1, "memory": "512m"},
}


def provide_samples(url: str, api_key: str | None, datasets: Path) -> str:
    """Put what is missing of the samples into the catalog; return a line that says what is there.

    An entry that is there stays as it is, because it may have been changed; except a dataset whose
    folder is gone, as after the checkout has moved.
    """
    with Modelyard(url, api_key=api_key or "") as yard:
        try:
            if _found(lambda: yard.model(MODEL)) is None:
                yard.put_model(DIGITS_MODEL)
            dataset = _found(lambda: yard.dataset(DIGITS_DATASET))
            if dataset is None or (dataset.path and not Path(dataset.path).is_dir()):
                folder = str(datasets / DIGITS_DATASET)
                yard.put_dataset({"name": DIGITS_DATASET, "path": folder})
        except ApiError as error:
            raise StackError(f"The samples can't be put into the catalog: {error}") from error
    return f"Model {MODEL} and dataset {DIGITS_DATASET} are in the catalog"


def _found(read: Callable[[], Any]) -> Any | None:  # noqa: ANN401 - an entry of either kind
    try:
        return read()
    except ApiError as error:
        if error.code != ErrorCode.NOT_FOUND:
            raise
        return None
