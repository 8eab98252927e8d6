"""A fleet whose processes are users of their own, with the permissions that docs/setup.md gives."""

import re
import shlex
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import aio_pika
import pytest
from aio_pika.exceptions import ChannelClosed

from deploy.local.docker_engine import DockerEngine
from deploy.local.mongodb import MongoDB
from deploy.local.rabbitmq import RabbitMQ
from modelyard.contract.topology import EVENTS, HOSTS, JOBS, REPORTS
from tests.e2e.catalog import PROBE, PROBES
from tests.e2e.fleet import Fleet, User, a_user_of
from tests.support.waiting import eventually

SETUP = Path(__file__).resolve().parents[2] / "docs" / "setup.md"
HOST = "gpu-7"
"""The host of the page."""


class Grant(NamedTuple):
    """What one user may configure, write to and read from."""

    user: str
    configure: str
    write: str
    read: str


def grants() -> list[Grant]:
    """Return what the page grants, in its order."""
    section = SETUP.read_text().partition("## RabbitMQ's permissions")[2]
    commands = section.partition("```sh\n")[2].partition("```")[0].replace("\\\n", " ")
    words = [shlex.split(line) for line in commands.splitlines()]
    return [Grant(*line[2:]) for line in words if line[:2] == ["rabbitmqctl", "set_permissions"]]


@pytest.fixture(scope="module")
def urls(rabbitmq: RabbitMQ) -> Iterator[dict[str, str]]:
    """Make a virtual host and the page's users in it; give the URL of each."""
    place, vhost = f"{rabbitmq.url.partition('@')[2]}/permissions", "permissions"
    made = "\n".join(
        f"""
        rabbit_auth_backend_internal:add_user(<<"{user}">>, <<"secret">>, <<"tests">>),
        ok = rabbit_auth_backend_internal:set_permissions(<<"{user}">>, <<"{vhost}">>,
          {_text(configure)}, {_text(write)}, {_text(read)}, <<"tests">>),
        """
        for user, configure, write, read in grants()
    )
    rabbitmq.ctl("eval", f'ok = rabbit_vhost:add(<<"{vhost}">>, <<"tests">>), {made} ok.')
    yield {one.user: f"amqp://{one.user}:secret@{place}" for one in grants()}
    rabbitmq.ctl("delete_vhost", vhost)
    for one in grants():
        rabbitmq.ctl("delete_user", one.user)


def _text(pattern: str) -> str:
    return '<<"' + pattern.replace("\\", "\\\\") + '">>'


@pytest.fixture(scope="module")
def limited(
    folder: Path, urls: dict[str, str], mongodb: MongoDB, engine: DockerEngine
) -> Iterator[Fleet]:
    """Start a fleet in which each process is the page's user."""
    users = {"gateway": "gateway", "dispatcher": "dispatcher", f"worker-{HOST}": f"worker-{HOST}"}
    made = Fleet(
        folder / "limited",
        amqp_url=urls["publisher"],
        mongo_url=mongodb.url.replace("/modelyard?", "/permissions?"),
        engines={HOST: engine},
        settings={name: {"MODELYARD_AMQP_URL": urls[user]} for name, user in users.items()},
    )
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture
async def user(limited: Fleet) -> AsyncIterator[User]:
    """Give the test someone who uses that fleet."""
    async with a_user_of(limited) as someone:
        await someone.put_model("probe-http", image=PROBE, **PROBES["probe-http"])
        yield someone


async def test_a_fleet_works_with_the_permissions_of_the_page(
    user: User, urls: dict[str, str], rabbitmq: RabbitMQ
) -> None:
    async with await aio_pika.connect(urls["billing"]) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue("billing.ends", exclusive=True)
        await queue.bind(EVENTS.name, "operation.succeeded")
        job_id = user.job_id()
        for verb in ("DEPLOY_CREATE", "DEPLOY_LOAD"):
            await user.done(verb, job_id, model="probe-http")
        body = {"job_id": job_id, "operation_type": "INFER", "input": {"tag": "x"}}
        published = await user.publish(body, key=f"by-amqp-{job_id}")
        assert (await user.ended(published))["state"] == "SUCCEEDED"
        slow = await user.submit("INFER", job_id, input={"sleep": 30})
        await eventually(lambda: _runs(user, slow), within_s=30)
        assert (await user.http.post(f"/v1/operations/{slow}/cancel")).status_code == 202
        assert (await user.ended(slow))["state"] == "CANCELLED"
        await user.done("TERMINATE", job_id)
        told = [await queue.get(timeout=5) for _ in range(4)]
        assert {message.routing_key for message in told} == {"operation.succeeded"}
    await user.publish(None, key=f"unread-{job_id}", raw=b"{")
    letter = await eventually(lambda: _letter(user), within_s=30)
    assert (await user.http.post(f"/v1/dead-letters/{letter}/replay")).status_code == 202
    # Nobody was refused anything, also not what is tried again without a word.
    users = "|".join(re.escape(urlsplit(url).username or "") for url in urls.values())
    refused = rf"access to .+ refused for user '({users})'"
    assert re.findall(refused, rabbitmq.daemon.log.read_text()) == []


async def _runs(user: User, operation_id: str) -> bool:
    answer = await user.http.get(f"/v1/operations/{operation_id}")
    return bool(answer.json()["state"] == "RUNNING")


async def _letter(user: User) -> str | None:
    page = (await user.http.get("/v1/dead-letters")).json()
    return page["dead_letters"][0]["dead_letter_id"] if page["dead_letters"] else None


@pytest.mark.usefixtures("limited")
@pytest.mark.parametrize(
    ("who", "exchange"),
    [
        ("publisher", HOSTS.name),
        ("publisher", REPORTS.name),
        ("billing", JOBS.name),
        (f"worker-{HOST}", HOSTS.name),
        (f"worker-{HOST}", JOBS.name),
        (f"worker-{HOST}", EVENTS.name),
    ],
)
async def test_nobody_publishes_where_the_page_does_not_let_him(
    urls: dict[str, str], who: str, exchange: str
) -> None:
    async with await aio_pika.connect(urls[who]) as connection:
        channel = await connection.channel()
        target = await channel.get_exchange(exchange, ensure=False)
        with pytest.raises(ChannelClosed, match="ACCESS_REFUSED"):
            await target.publish(aio_pika.Message(b"{}"), HOST)
