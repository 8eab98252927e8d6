"""Checks the catalog's rules once more, right before a container is created.

The gateway has checked the model and the dataset of a command, but perhaps by the rules of an older
version; or someone wrote the record directly. A model that breaks a rule gets no container; a job
that has one can still be unloaded and terminated.
"""

from pydantic import BaseModel, ValidationError

from modelyard.contract.errors import ErrorCode, ModelyardError
from modelyard.contract.messages import HostCommand
from modelyard.contract.validation import error_list, first_errors


def check_catalog_rules(command: HostCommand) -> None:
    """Return if the model and the dataset follow the rules; raises `spec_refused`."""
    _check("model", command.model)
    if command.dataset is not None:
        _check("dataset", command.dataset)


def _check(what: str, entry: BaseModel) -> None:
    try:
        type(entry).model_validate(entry.model_dump(mode="json"))
    except ValidationError as error:
        raise ModelyardError(
            ErrorCode.SPEC_REFUSED,
            f"The {what} breaks a rule of the catalog: {first_errors(error)}. Store a corrected "
            f"{what} in the catalog, and create the job again.",
            errors=error_list(error),
        ) from error
