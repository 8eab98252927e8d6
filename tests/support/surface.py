"""All that others hold Modelyard to, as one JSON document: names and shapes, without prose.

`python -m tests.support.surface` writes it to `tests/fixtures/surface.json`; whoever changes the
surface on purpose runs it, and the difference is in the review. What classes, modules and
functions are called does not count, except where HTTP or Python clients see it.
"""

import ast
import asyncio
import importlib
import inspect
import json
import pkgutil
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import typer.main
from pydantic import BaseModel

from gateway.app import create_app
from gateway.service import Gateway
from modelyard.broker import Broker
from modelyard.cli.machine.settings import CommandLineSettings
from modelyard.cli.main import commands
from modelyard.client import AsyncModelyard, Modelyard
from modelyard.contract.errors import ErrorCode
from modelyard.store import Store

ROOT = Path(__file__).resolve().parents[2]
SNAPSHOT = ROOT / "tests" / "fixtures" / "surface.json"
SERVICES = ("gateway", "dispatcher", "worker")
PROSE = frozenset({"title", "description", "summary", "examples", "tags"})
DOTTED = re.compile(r"\b(?:[a-z_0-9]+\.)+(?=[A-Za-z])")
"""The modules in front of a name."""
CONSTANT = re.compile(r"[A-Z][A-Z0-9_]*")


def surface() -> dict[str, Any]:
    """Return the surface: JSON values only, in an order of their own."""
    found = {
        "http": asyncio.run(_openapi()),
        "messages": _models("modelyard.contract"),
        "records": _models("modelyard.store"),
        "errors": sorted(ErrorCode),
        "wire_names": _wire_names(),
        "indexes": _indexes(),
        "crash_points": sorted(_calls("crash_point")),
        "log_events": sorted(set(_log_events())),
        "settings": {
            **{service: _fields(_settings(service)) for service in SERVICES},
            "command line": _fields(CommandLineSettings),
        },
        "cli": _command(typer.main.get_command(commands)),
        "client": {kind.__name__: _methods(kind) for kind in (Modelyard, AsyncModelyard)},
    }
    plain: dict[str, Any] = json.loads(json.dumps(found, sort_keys=True, default=str))
    return plain


async def _openapi() -> object:
    store = Store("mongodb://127.0.0.1:1/x", name="test", timeout_s=0.1)
    gateway = Gateway(store, Broker("amqp://127.0.0.1:1", name="test"))
    try:
        return _without_prose(create_app(gateway).openapi())
    finally:
        await gateway.close()


def _without_prose(node: object) -> object:
    """Drop prose; what a property is called is kept, though it be `title`."""
    if isinstance(node, Mapping):
        return {
            name: {key: _without_prose(value[key]) for key in value}
            if name == "properties"
            else _without_prose(value)
            for name, value in node.items()
            if name not in PROSE
        }
    if isinstance(node, list):
        return [_without_prose(value) for value in node]
    return node


def _modules(package: str) -> Iterator[Any]:
    root = importlib.import_module(package)
    yield root
    for info in pkgutil.walk_packages(root.__path__, f"{package}."):
        if not info.name.endswith("__main__"):
            yield importlib.import_module(info.name)


def _models(package: str) -> list[object]:
    """Return the shape of each message or record, whatever its class is called."""
    kinds = {
        value
        for module in _modules(package)
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, BaseModel)
        and value.__module__.startswith(package)
    }
    shapes = {json.dumps(_shape(kind), sort_keys=True) for kind in kinds}
    return [json.loads(shape) for shape in sorted(shapes)]


def _shape(kind: type[BaseModel]) -> object:
    made = kind.model_json_schema(mode="validation")
    parts = made.pop("$defs", {})
    return _without_prose(_resolved(made, parts, ()))


def _resolved(node: object, parts: Mapping[str, object], inside: tuple[str, ...]) -> object:
    if isinstance(node, Mapping):
        if "$ref" in node:
            name = str(node["$ref"]).rpartition("/")[2]
            if name in inside:
                return {"$ref": len(inside) - inside.index(name)}
            return _resolved(parts[name], parts, (*inside, name))
        return {
            name: _resolved(value, parts, inside)
            for name, value in node.items()
            if name != "discriminator"
        }
    if isinstance(node, list):
        return [_resolved(value, parts, inside) for value in node]
    return node


def _wire_names() -> object:
    topology = importlib.import_module("modelyard.contract.topology")
    return {name: repr(value) for name, value in vars(topology).items() if CONSTANT.fullmatch(name)}


def _indexes() -> object:
    indexes = importlib.import_module("modelyard.store.indexes").INDEXES
    return {
        collection: [
            {**index.document, "key": list(index.document["key"].items())} for index in of_it
        ]
        for collection, of_it in indexes.items()
    }


def _trees() -> Iterator[ast.AST]:
    for package in (*SERVICES, "modelyard"):
        for path in sorted((ROOT / package).rglob("*.py")):
            yield ast.parse(path.read_text())


def _calls(name: str) -> Iterator[str]:
    """Yield the literal first arguments of the calls of a function."""
    for tree in _trees():
        for node in ast.walk(tree):
            match node:
                case ast.Call(func=ast.Name(id=called), args=[ast.Constant(value=str(text)), *_]):
                    if called == name:
                        yield text


def _log_events() -> Iterator[str]:
    for tree in _trees():
        for node in ast.walk(tree):
            match node:
                case ast.Call(
                    func=ast.Attribute(value=ast.Name(id="log")),
                    args=[ast.Constant(value=str(text)), *_],
                ):
                    yield text


def _settings(service: str) -> type[BaseModel]:
    module = importlib.import_module(f"{service}.settings")
    [kind] = {
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, BaseModel)
        and value.__module__ == module.__name__
        and value.model_config.get("env_prefix")
        and value.__name__.endswith("Settings")
    }
    return kind


def _fields(kind: type[BaseModel]) -> object:
    return {name: repr(field.default) for name, field in kind.model_fields.items()}


def _command(command: Any) -> object:
    parameters = [
        {
            "names": [*parameter.opts, *parameter.secondary_opts],
            "type": DOTTED.sub("", str(parameter.type_descriptor.annotation)),
            "repeated": parameter.multiple,
            "required": parameter.required,
            "default": repr(parameter.default),
            "bounds": [parameter.min, parameter.max],
            "variable": parameter.envvar,
        }
        for parameter in command.params
    ]
    within = getattr(command, "commands", {})
    return {
        "parameters": parameters,
        "commands": {name: _command(within[name]) for name in sorted(within)},
    }


def _methods(kind: type) -> object:
    return {
        name: DOTTED.sub("", str(inspect.signature(value)))
        for name, value in inspect.getmembers(kind, callable)
        if not name.startswith("_") or name == "__init__"
    }


def write(found: Mapping[str, Any]) -> None:
    """Write the snapshot."""
    SNAPSHOT.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    write(surface())
