"""The entries on the page about images are valid, and those of servers that are run are run so."""

import json
import re
from pathlib import Path

from modelyard.contract.catalog.entries import ModelSpec
from tests.ecosystem.servers import SERVERS

PAGE = Path(__file__).parents[3] / "docs" / "own-images.md"
ENTRIES = [json.loads(one) for one in re.findall(r"```json\n(.*?)```", PAGE.read_text(), re.DOTALL)]


def test_each_entry_is_valid() -> None:
    assert len(ENTRIES) == 5
    for entry in ENTRIES:
        assert ModelSpec.model_validate(entry).name == entry["name"]


def test_what_is_run_is_what_the_page_says() -> None:
    told = {entry["name"]: entry for entry in ENTRIES}
    for server in SERVERS:
        shown = [name for name in server.models if name in told]
        assert shown, server.name
        for name in shown:
            # Its image sets the environment.
            entry = {k: v for k, v in told[name].items() if k not in {"name", "image", "env"}}
            assert entry == server.models[name]
