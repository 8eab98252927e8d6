"""The pages that users read say what the code does."""

import re
from pathlib import Path
from typing import get_args

import pytest

from dispatcher.events import HostFact
from dispatcher.settings import DispatcherSettings
from gateway.settings import GatewaySettings
from modelyard.contract.catalog.entries import ModelSpec
from modelyard.contract.errors import SENTENCES
from modelyard.contract.states import JobState, OperationState, Phase, Verb
from modelyard.contract.topology import DEAD_QUEUE, EXCHANGES, HEARTBEATS_QUEUE, JOBS_QUEUE
from modelyard.process.config.sources import key_of, variable
from modelyard.process.settings import ProcessSettings
from worker.settings import WorkerSettings

ROOT = Path(__file__).resolve().parents[3]
STATES = (ROOT / "docs/states.md").read_text()
MODELS = (ROOT / "docs/models.md").read_text()
AMQP = (ROOT / "docs/amqp.md").read_text()
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *ROOT.glob("docs/**/*.md"),
    *ROOT.glob("deploy/**/*.md"),
]


@pytest.mark.parametrize("code", list(SENTENCES))
def test_every_error_code_is_explained_in_its_own_words(code: str) -> None:
    assert f"| `{code}` | {dict(SENTENCES)[code]} |" in STATES  # type: ignore[index]


@pytest.mark.parametrize("word", [*OperationState, *JobState, *Verb, *Phase])
def test_every_state_verb_and_phase_is_explained(word: str) -> None:
    assert f"`{word}`" in STATES


def test_the_wire_names_are_those_of_the_code() -> None:
    for name in [*(exchange.name for exchange in EXCHANGES), JOBS_QUEUE.name, DEAD_QUEUE.name]:
        assert f"`{name}`" in AMQP
    assert HEARTBEATS_QUEUE.name in AMQP


def test_every_event_is_told_of_and_no_other() -> None:
    events = AMQP.partition("## Events")[2].partition("## Names")[0]
    told = set[str]()
    for row in re.findall(r"^\| (`.+?) \|", events, re.MULTILINE):
        first, *others = re.findall(r"`([^`]+)`", row)
        told |= {first, *(first.partition(".")[0] + one for one in others)}
    assert told == {
        *(f"operation.{state.lower()}" for state in OperationState),
        *(f"job.{state.lower()}" for state in JobState if state is not JobState.NONE),
        "job.moved",
        *(f"host.{fact}" for fact in get_args(HostFact)),
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_the_pages_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", page.read_text()):
        if "://" in target:
            continue
        goal = page.parent / target if target else page
        assert goal.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", goal.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", one).lower().replace(" ", "-") for one in headings}
            assert anchor in anchors, f"{target}#{anchor}"


@pytest.mark.parametrize("kind", [GatewaySettings, DispatcherSettings, WorkerSettings])
def test_every_setting_is_on_a_page(kind: type[ProcessSettings]) -> None:
    words = {word for page in PAGES for word in re.findall(r"\w+", page.read_text())}
    fields = kind.model_fields
    assert [one for one in fields if not {variable(kind, one), key_of(kind, one)} & words] == []


def test_the_defaults_of_a_model_are_those_of_the_code() -> None:
    part = MODELS.partition("Fields that may be left out")[2].partition("## Profiles")[0]
    rows = re.findall(r"^\| `(\w+)` \| `?([^`|]+?)`? \|", part, re.MULTILINE)
    assert len(rows) == 7
    rows += re.findall(r"\*\*`(\w+)`\*\* \(`?(\w+)`?\)", part)
    assert {name for name, _ in rows[7:]} == {"restart", "max_restarts", "stop_grace_s"}
    for field, told in rows:
        default = ModelSpec.model_fields[field].default
        assert told == (f"{default:g}" if isinstance(default, float) else str(default).lower())


def named_tests(page: Path) -> list[tuple[str, str]]:
    """Return the tests that a page names; `::test_x` is of the file named before it."""
    found, file = [], ""
    for quoted in re.findall(r"`([^`\s]*(?:\.py|::)[^`\s]*)`", page.read_text()):
        path, _, test = quoted.partition("::")
        file = path or file
        if file.startswith("tests/"):
            found.append((file, test))
    return found


@pytest.mark.parametrize(("file", "test"), named_tests(ROOT / "docs" / "security.md"))
def test_a_test_that_is_named_is_there(file: str, test: str) -> None:
    text = (ROOT / file).read_text()
    assert not test or f"def {test}(" in text
