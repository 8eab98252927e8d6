"""JSON and YAML that a user gives: in an option, in a file, on standard input."""

import sys
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import typer
import yaml

from modelyard.contract.content.transfers import MAX_CONTENT_BYTES
from modelyard.contract.errors import InvalidRequestError
from modelyard.contract.messages import MAX_BATCH_BYTES
from modelyard.contract.strict_json import JsonValue, dump_json, parse_json

_YAML = frozenset({".yaml", ".yml"})
_STDIN = "standard input"


class _PlainLoader(yaml.SafeLoader):
    """Reads YAML as JSON has it: no dates, no references to other parts of the document."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            alias: Any = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(
                problem="aliases (*name) are not allowed", problem_mark=alias.start_mark
            )
        node: yaml.Node | None = super().compose_node(parent, index)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:  # noqa: FBT001, FBT002 - PyYAML's
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:str":
                raise yaml.MarkedYAMLError(
                    problem=f"the name {key.value!r} is not a text; put it in quotes",
                    problem_mark=key.start_mark,
                )
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the name {key.value!r} occurs twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


_PlainLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def value_of(text: str) -> JsonValue:
    """Read an option: JSON, `@` and the name of a file, or `-` for standard input."""
    if text == "-" or text.startswith("@"):
        return document(text.removeprefix("@"))
    return _json(text.encode(errors="surrogateescape"), "the option --input")


def document(name: str) -> JsonValue:
    """Read a file of JSON or YAML by its name; `-` is standard input, which may be either."""
    found = documents(name)
    if len(found) != 1:
        raise typer.BadParameter(f"{name} holds {len(found)} documents; one is expected")
    return found[0]


def documents(name: str) -> list[JsonValue]:
    """Read all documents of a file, of which only YAML can have several."""
    if name == "-":
        content = sys.stdin.buffer.read(MAX_BATCH_BYTES + 1)
        # All that is valid as a request or as an entry in JSON begins like this.
        as_json = content.lstrip()[:1] in (b"{", b"[", b"")
        return [_json(content, _STDIN)] if as_json else _yaml(content, _STDIN)
    path = Path(name)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BATCH_BYTES + 1)
    except OSError as error:
        raise typer.BadParameter(f"{name}: {error.strerror}") from error
    return _yaml(content, name) if path.suffix.lower() in _YAML else [_json(content, name)]


def file_content(path: Path) -> bytes:
    """Read a file of up to `MAX_CONTENT_BYTES`; raises `typer.BadParameter`."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_CONTENT_BYTES + 1)
    except OSError as error:
        raise typer.BadParameter(f"{path}: {error.strerror}") from error
    if len(content) > MAX_CONTENT_BYTES:
        raise typer.BadParameter(f"{path}: more than {MAX_CONTENT_BYTES} bytes")
    return content


def write_file(path: Path, content: bytes) -> None:
    """Write a file; raises `typer.BadParameter` if that is not possible."""
    try:
        path.write_bytes(content)
    except OSError as error:
        raise typer.BadParameter(f"{path}: {error.strerror}") from error


def mapping(value: JsonValue, place: int | None = None) -> dict[str, JsonValue]:
    """Return a request; raises `typer.BadParameter` if it is not a JSON object.

    `place` is its index in a list.
    """
    if not isinstance(value, dict):
        which = "" if place is None else f"; number {place + 1} of the list is none"
        raise typer.BadParameter(f"a request is a JSON object, or a list of them{which}")
    return value


def entries(name: str) -> list[dict[str, JsonValue]]:
    """Read the catalog entries of a file; raises `typer.BadParameter` if it does not hold any."""
    found = documents(name)
    if not found:
        raise typer.BadParameter(f"{name} holds no entry")
    several = len(found) > 1
    return [
        _named(value, f"{name}, document {number}" if several else name)
        for number, value in enumerate(found, start=1)
    ]


def _named(value: JsonValue, where: str) -> dict[str, JsonValue]:
    if isinstance(value, list):
        raise typer.BadParameter(
            f"{where} holds a list; several entries are documents of one YAML file, with --- "
            "between them"
        )
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise typer.BadParameter(f"{where}: an entry is an object with a name")
    return value


def _json(content: bytes, source: str) -> JsonValue:
    try:
        return parse_json(content, max_bytes=MAX_BATCH_BYTES)
    except InvalidRequestError as error:
        raise typer.BadParameter(f"{source}: {error.message}") from error


def _yaml(content: bytes, source: str) -> list[JsonValue]:
    """Read YAML; each document passes the rules of JSON too (depth, names, numbers)."""
    if len(content) > MAX_BATCH_BYTES:
        raise typer.BadParameter(f"{source}: more than {MAX_BATCH_BYTES} bytes")
    try:
        found = [one for one in yaml.load_all(content, _PlainLoader) if one is not None]
        texts = [dump_json(one) for one in found]
    except yaml.MarkedYAMLError as error:
        raise typer.BadParameter(f"{source}: {_with_place(error)}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise typer.BadParameter(f"{source}: {' '.join(str(error).split())}") from error
    except (TypeError, ValueError) as error:
        raise typer.BadParameter(f"{source}: it holds what JSON has not: {error}") from error
    return [_json(text.encode(), source) for text in texts]


def _with_place(error: yaml.MarkedYAMLError) -> str:
    """Return what is wrong and where; PyYAML's own text is made for several lines."""
    mark = error.problem_mark or error.context_mark
    place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    return " ".join(f"{error.problem or error.context}{place}".split())
