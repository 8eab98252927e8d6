"""Which queues a publisher may name for its replies."""

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.intake.replies import with_replies
from modelyard.broker import Delivery
from modelyard.broker.properties import MessageProperties
from tests.support.dispatcher.parts import new_operation

ONE = new_operation()
NAMES = st.text("ab.", min_size=1, max_size=6)


def may_name(user: str | None, queue: str) -> bool:
    raw: Any = SimpleNamespace()
    delivery = Delivery(
        body=b"",
        message_id=None,
        type=None,
        routing_key="job.submit",
        redelivered=False,
        headers={},
        user_id=user,
        raw=raw,
        properties=MessageProperties(reply_to=queue),
    )
    (one,) = with_replies([ONE], delivery)
    assert (one.reply is None) is (one.rejection is not None)
    return one.reply is not None


@pytest.mark.parametrize(
    ("user", "queue", "may"),
    [
        ("shop", "shop.answers", True),
        ("shop.eu", "shop.eu.answers", True),
        ("shop", "shop.eu.answers", False),
        ("shop.eu", "shop.answers", False),
        ("shop", "shop", False),
        ("shop", "shopping.answers", False),
        (None, "shop.answers", False),
        ("", ".answers", False),
        ("modelyard", "modelyard.answers", False),
        (None, "amq.gen-a.b", True),
        (None, "amq.rabbitmq.reply-to.x.y", True),
    ],
)
def test_a_publisher_names_queues_of_his_own(user: str | None, queue: str, *, may: bool) -> None:
    assert may_name(user, queue) is may


@given(NAMES, NAMES, NAMES)
def test_no_queue_belongs_to_two_users(one: str, other: str, word: str) -> None:
    if one != other:
        assert not (may_name(one, f"{one}.{word}") and may_name(other, f"{one}.{word}"))
