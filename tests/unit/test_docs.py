"""The pages that users read say what the code does."""

import re
from pathlib import Path

import pytest

from modelyard.contract.errors import SENTENCES
from modelyard.contract.states import JobState, OperationState, Phase, Verb
from modelyard.contract.topology import DEAD_QUEUE, EXCHANGES, HEARTBEATS_QUEUE, JOBS_QUEUE

ROOT = Path(__file__).resolve().parents[2]
STATES = (ROOT / "docs/states.md").read_text()
AMQP = (ROOT / "docs/amqp.md").read_text()
PAGES = [ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/**/*.md")]


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_the_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target
