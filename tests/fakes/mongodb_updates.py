"""Updates of one document: by operators, or by a pipeline.

Source: MongoDB's manual, "Update Operators" and "Updates with Aggregation Pipeline".
"""

import copy
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from tests.fakes.mongodb_expressions import evaluate
from tests.fakes.mongodb_values import MISSING, Document, NotKnownError, put_at, value_at

Update = Mapping[str, Any] | Sequence[Mapping[str, Any]]


def updated(document: Document, update: Update, now: datetime, *, inserting: bool) -> Document:
    """Return the document as it is after an update."""
    if isinstance(update, Mapping):
        return _operated(document, update, now, inserting=inserting)
    for stage in update:
        ((name, given),) = stage.items()
        if name == "$set":
            document = _set_stage(document, given, {"ROOT": document, "NOW": now})
        elif name == "$replaceWith":
            document = evaluate(given, {"ROOT": document, "NOW": now})
        else:
            raise NotKnownError(f"the stage {name} in an update")
    return document


def seed_of(query: Mapping[str, Any]) -> Document:
    """Return the document that an upsert begins with: what the query says is equal."""
    if any(key.startswith("$") or "." in key for key in query):
        raise NotKnownError("an upsert by more than equal fields")
    return {key: one for key, one in query.items() if not isinstance(one, dict)}


def _set_stage(
    document: Document, fields: Mapping[str, Any], variables: Mapping[str, Any]
) -> Document:
    """Set fields; a document among them is merged into what is there, as `$set` does."""
    changed = dict(document)
    for field, expression in fields.items():
        if "." in field:
            raise NotKnownError(f"the nested field {field} in a pipeline")
        if isinstance(expression, dict) and not any(key.startswith("$") for key in expression):
            there = changed.get(field)
            inner = there if isinstance(there, dict) else {}
            changed[field] = _set_stage(inner, expression, variables)
            continue
        put_at(changed, [field], evaluate(expression, variables))
    return changed


def _operated(
    document: Document, update: Mapping[str, Any], now: datetime, *, inserting: bool
) -> Document:
    changed = copy.deepcopy(document)
    for operator, fields in update.items():
        if operator == "$setOnInsert" and not inserting:
            continue
        for field, given in fields.items():
            _change(changed, operator, field, given, now)
    return changed


def _change(document: Document, operator: str, field: str, given: Any, now: datetime) -> None:
    path = field.split(".")
    there = value_at(document, path)
    match operator:
        case "$set" | "$setOnInsert":
            put_at(document, path, given)
        case "$unset":
            put_at(document, path, MISSING)
        case "$inc":
            put_at(document, path, given if there is MISSING else there + given)
        case "$push":
            put_at(document, path, _pushed([] if there is MISSING else there, given))
        case "$currentDate" if given is True:
            put_at(document, path, now)
        case _:
            raise NotKnownError(f"the update {operator}: {given!r}")


def _pushed(there: list[Any], given: Any) -> list[Any]:
    if not isinstance(given, dict) or not set(given) <= {"$each", "$slice"}:
        raise NotKnownError("$push without $each")
    most = given.get("$slice", -(1 << 30))
    if most >= 0:
        raise NotKnownError("$slice that keeps the first ones")
    return [*there, *given["$each"]][most:]
