"""JSON Schemas of the public messages: `python -m modelyard.contract.schemas [--check]`.

They are written to `docs/schemas/`, for clients in other languages. They follow draft 2020-12. The
same code always gives the same text, so a difference is a change of the contract.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from modelyard.contract.answers import Problem
from modelyard.contract.catalog.entries import DatasetSpec, ModelSpec
from modelyard.contract.messages import Event, InferenceRequest, JobRequest, Submission
from modelyard.contract.views import FootprintView, HostView, JobView, OperationView

DIALECT = "https://json-schema.org/draft/2020-12/schema"
FOLDER = Path(__file__).resolve().parents[2] / "docs" / "schemas"

Mode = Literal["validation", "serialization"]

# Messages that Modelyard reads are described as input, those that only it writes as output.
PUBLIC: dict[str, tuple[type[BaseModel], Mode]] = {
    "job-request": (JobRequest, "validation"),
    "inference-request": (InferenceRequest, "validation"),
    "submission": (Submission, "validation"),
    "event": (Event, "validation"),
    "operation-view": (OperationView, "serialization"),
    "job-view": (JobView, "serialization"),
    "host-view": (HostView, "serialization"),
    "footprint-view": (FootprintView, "serialization"),
    "model-spec": (ModelSpec, "validation"),
    "dataset-spec": (DatasetSpec, "validation"),
    "problem": (Problem, "validation"),
}


def schema(name: str) -> dict[str, Any]:
    """Return the schema of one public message."""
    model, mode = PUBLIC[name]
    made = model.model_json_schema(mode=mode)
    return {"$schema": DIALECT, "$id": f"urn:modelyard:schema:{name}:1", **made}


def rendered() -> dict[str, str]:
    """Return every schema as text, by the name of its file."""
    return {
        f"{name}.json": json.dumps(schema(name), indent=2, sort_keys=True, ensure_ascii=False)
        + "\n"
        for name in PUBLIC
    }


def drifted(folder: Path) -> list[str]:
    """Return the files that are missing, differ, or belong to no message any more."""
    expected = rendered()
    found = {path.name: path.read_text("utf-8") for path in folder.glob("*.json")}
    names = expected.keys() | found.keys()
    return sorted(name for name in names if expected.get(name) != found.get(name))


def write(folder: Path) -> None:
    """Write all schemas and remove those that belong to no message any more."""
    folder.mkdir(parents=True, exist_ok=True)
    expected = rendered()
    for path in folder.glob("*.json"):
        if path.name not in expected:
            path.unlink()
    for name, text in expected.items():
        (folder / name).write_text(text, "utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Write the schemas, or compare them; return the exit code, 1 if they differ."""
    parser = argparse.ArgumentParser(prog="python -m modelyard.contract.schemas")
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="default: docs/schemas")
    given = parser.parse_args(arguments)
    if not given.check:
        write(given.folder)
        return 0
    names = drifted(given.folder)
    for name in names:
        sys.stderr.write(f"{given.folder / name} differs from the contract.\n")
    if names:
        sys.stderr.write("Run `python -m modelyard.contract.schemas` and review the change.\n")
    return 1 if names else 0


if __name__ == "__main__":
    sys.exit(main())
