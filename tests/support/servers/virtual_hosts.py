"""Virtual hosts of a RabbitMQ, so that tests share the server and nothing on it."""

import itertools
from collections.abc import Iterator

from deploy.local.rabbitmq import RabbitMQ

AT_ONCE = 25
"""One start of the command-line tool costs more than so many virtual hosts."""


def virtual_hosts(rabbitmq: RabbitMQ, prefix: str) -> Iterator[str]:
    """Make virtual hosts, in bulk when one is asked for; yield their names."""
    for start in itertools.count(step=AT_ONCE):
        rabbitmq.ctl(
            "eval",
            f"""
            lists:foreach(fun(N) ->
              V = iolist_to_binary(["{prefix}-", integer_to_list(N)]),
              ok = rabbit_vhost:add(V, <<"tests">>),
              ok = rabbit_auth_backend_internal:set_permissions(
                <<"guest">>, V, <<".*">>, <<".*">>, <<".*">>, <<"tests">>)
            end, lists:seq({start}, {start + AT_ONCE - 1})).
            """,
            seconds=120,
        )
        yield from (f"{prefix}-{number}" for number in range(start, start + AT_ONCE))
