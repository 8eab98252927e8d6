"""The recipe of an operation's id in docs/amqp.md, and its test vectors."""

import re
import uuid
from pathlib import Path

from modelyard.contract.ids import operation_id_for_key

PAGE = (Path(__file__).resolve().parents[3] / "docs/amqp.md").read_text()
VECTORS = re.findall(r"^\| `([^`]+)` \| `([0-9a-f-]{36})` \|$", PAGE, re.MULTILINE)


def test_each_vector_is_what_the_product_computes() -> None:
    assert len(VECTORS) == 5
    for key, operation_id in VECTORS:
        assert operation_id_for_key(key) == operation_id, key


def test_the_recipe_gives_the_same_ids() -> None:
    (namespace,) = set(re.findall(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", PAGE)) - {
        operation_id for _, operation_id in VECTORS
    }
    assert PAGE.count(namespace) == 3
    for key, operation_id in VECTORS:
        assert str(uuid.uuid5(uuid.UUID(namespace), f"default\n{key}")) == operation_id
