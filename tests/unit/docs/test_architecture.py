"""`docs/architecture.md` names what is there: every path and every name in code type exists."""

import ast
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import get_args

import pytest

from dispatcher.settings import DispatcherSettings
from gateway.settings import GatewaySettings
from modelyard.contract.catalog.entries import Profile
from modelyard.contract.errors import ErrorCode
from modelyard.contract.states import JobState, Liveness, OperationState, Phase, Verb
from modelyard.contract.topology import EXCHANGES, JOBS_QUEUE, REPORTS_QUEUE
from modelyard.process.config.sources import variable
from modelyard.store.records import Source
from worker.settings import WorkerSettings

ROOT = Path(__file__).resolve().parents[3]
ARCHITECTURE = ROOT / "docs" / "architecture.md"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
PACKAGES = ("modelyard", "gateway", "dispatcher", "worker")
PATH = re.compile(r"[\w.-]+(?:/[\w.-]*)+|[\w.-]+\.(?:py|md|toml|json|lock)")
NAME = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)?")
OF_CODE = re.compile(r"_?[A-Z]\w*(?:\.\w+)?|_\w+")
"""What can be nothing but a class, a constant or a private name."""
NAME_THEN_PATH = re.compile(
    r"((?:`[\w.]+`(?:, (?:and )?| and ))*`[\w.]+`)(?:, | \(| in )`([\w/]+\.py)`"
)
"""One or more names and where a sentence says that they are: "`Name`, `path.py`",
"`Name` (`path.py`)", or "`one` and `Other` in `path.py`"."""
TESTS_OWN = frozenset({"points", "VARIABLES", "WORDS"})
"""Names of the tests' own that the pages mention."""
NOT_OURS = frozenset(
    {
        *("dead", "description", "$inc", "$$NOW", "--help", "MODELYARD_"),
        *("settings.py", "service.py", "NNNN-subject.md", "Retry-After"),
    }
)
"""Words of Docker, pydantic, MongoDB and HTTP, a prefix, files of every service, a pattern."""
WORDS = frozenset(
    {
        *(code.value for code in ErrorCode),
        *(
            word.value
            for kind in (OperationState, JobState, Liveness, Phase, Verb)
            for word in kind
        ),
        *(profile.value for profile in Profile),
        *(exchange.name for exchange in (*EXCHANGES, JOBS_QUEUE, REPORTS_QUEUE)),
        *(f"operation.{state.lower()}" for state in OperationState),
        *get_args(Source),
        *("other_epoch", "other_host", "other_job", "other_incarnation"),
        *("unknown_operation", "older", "illegal", "overtaken"),
    }
)
"""Words of the contract, and the reasons for which a report is stale."""
VARIABLES = frozenset(
    variable(kind, name)
    for kind in (GatewaySettings, DispatcherSettings, WorkerSettings)
    for name in kind.model_fields
)
COMMANDS = frozenset({"modelyard", "wait=30", "on_host_lost:", "python", "make", "GET", "POST"})


def _names_in(path: Path) -> Iterator[str]:
    """Yield what a module defines: `name`, `Class`, `Class.name`, and the fields of classes."""
    for node in ast.parse(path.read_text()).body:
        yield from _defined(node)
        if isinstance(node, ast.ClassDef):
            for inner in node.body:
                for name in _defined(inner):
                    yield f"{node.name}.{name}"
                if isinstance(inner, ast.AnnAssign):
                    yield from _defined(inner)
            for part in ast.walk(node):
                match part:
                    case ast.Attribute(value=ast.Name(id="self"), ctx=ast.Store(), attr=name):
                        yield f"{node.name}.{name}"


def _defined(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
            yield name
        case ast.Assign(targets=targets):
            yield from (one.id for one in targets if isinstance(one, ast.Name))
        case ast.AnnAssign(target=ast.Name(id=name)):
            yield name
        case _:
            pass


@cache
def names_by_file() -> Mapping[str, frozenset[str]]:
    """Return what each file of the product defines.

    Not when this module is imported: each process that collects tests would read all the files.
    """
    files = (path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return {str(path.relative_to(ROOT)): frozenset(_names_in(path)) for path in files}


@cache
def all_names() -> frozenset[str]:
    """Return what the product defines."""
    return frozenset[str]().union(*names_by_file().values())


def in_code_type(text: str) -> list[str]:
    """Return what stands in backticks, but for blocks of code."""
    without_blocks = re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"`([^`]+)`", without_blocks)


def exists(word: str) -> bool:
    """Tell whether something in code type is there, in the repository or in the contract."""
    if " " in word or word.startswith("/"):
        return word.startswith(("/", *COMMANDS))
    if word in WORDS | VARIABLES | NOT_OURS | TESTS_OWN | COMMANDS:
        return True
    if PATH.fullmatch(word):
        return (ROOT / word).exists()
    return NAME.fullmatch(word) is not None and word in all_names()


def test_everything_in_code_type_exists() -> None:
    missing = [word for word in in_code_type(ARCHITECTURE.read_text()) if not exists(word)]
    assert not missing


def test_paths_and_types_that_contributors_are_sent_to_exist() -> None:
    words = in_code_type(CONTRIBUTING.read_text())
    told = [word for word in words if PATH.fullmatch(word) or OF_CODE.fullmatch(word)]
    assert len(told) > 10
    assert not [word for word in told if not exists(word)]


def told_places(text: str) -> list[tuple[str, str]]:
    """Return each name of ours with the file of the product in which a sentence says it is."""
    return [
        (name, path)
        for names, path in NAME_THEN_PATH.findall(text)
        if path.partition("/")[0] in PACKAGES
        for name in in_code_type(names)
        if not PATH.fullmatch(name) and name not in WORDS | NOT_OURS
    ]


@pytest.mark.parametrize(
    ("name", "path"),
    sorted(
        {place for page in (ARCHITECTURE, CONTRIBUTING) for place in told_places(page.read_text())}
    ),
)
def test_each_name_is_in_the_file_that_the_sentence_gives(name: str, path: str) -> None:
    assert name in names_by_file().get(path, frozenset())


def test_sentences_that_give_a_file_are_read() -> None:
    assert told_places("see `One`, `worker/a.py`, then `two` (`gateway/b.py`).") == [
        ("One", "worker/a.py"),
        ("two", "gateway/b.py"),
    ]
    assert told_places("`One` and `_two` in `worker/a.py` and `worker/b.py`") == [
        ("One", "worker/a.py"),
        ("_two", "worker/a.py"),
    ]
    assert len(told_places(ARCHITECTURE.read_text())) > 30


def concerns() -> list[tuple[str, list[str], list[str]]]:
    """Return the table of concerns: each one's name, its types and where they live."""
    table = ARCHITECTURE.read_text().partition("## Concerns")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.+?) \| (.*) \| (`.*`) \|$", table, re.MULTILINE)
    return [(what, in_code_type(types), in_code_type(paths)) for what, types, paths in rows]


@pytest.mark.parametrize(("what", "types", "paths"), concerns())
def test_each_type_lives_where_the_table_says(
    what: str, types: list[str], paths: list[str]
) -> None:
    places = tuple(f"{path.rstrip('/')}/" for path in paths)
    there = {
        name
        for file, names in names_by_file().items()
        if f"{file}/".startswith(places)
        for name in names
    }
    assert types, what
    assert set(types) <= there


@pytest.mark.parametrize(
    "word",
    ["Scheduler.plan", "NoSuchType", "dispatcher/scheduling/line.py", "MODELYARD_NO_SETTING"],
)
def test_a_name_that_is_gone_is_missed(word: str) -> None:
    assert not exists(word)


def test_a_table_of_concerns_is_read() -> None:
    assert len(concerns()) > 50
