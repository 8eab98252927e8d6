"""Virtual hosts of a RabbitMQ, so that tests share the server and nothing on it."""

from collections.abc import Iterable

from deploy.local.rabbitmq import RabbitMQ

AT_ONCE = 25
"""One start of the command-line tool costs more than so many virtual hosts."""


class VirtualHosts:
    """Makes virtual hosts in bulk when one is asked for, and deletes those that were given back.

    Each virtual host that is there makes RabbitMQ slower, most of all when more are made.
    """

    def __init__(self, rabbitmq: RabbitMQ, prefix: str) -> None:
        self._rabbitmq = rabbitmq
        self._prefix = prefix
        self._made = 0
        self._new: list[str] = []
        self._used: list[str] = []

    def take(self) -> str:
        """Return the name of a virtual host that is empty, and is the guest's."""
        if not self._new:
            first, self._made = self._made, self._made + AT_ONCE
            names = [f"{self._prefix}-{number}" for number in range(first, self._made)]
            self._replace(self._used, names)
            self._new, self._used = names, []
        return self._new.pop()

    def give_back(self, name: str) -> None:
        """Have a virtual host deleted, in time."""
        self._used.append(name)

    def _replace(self, used: Iterable[str], new: Iterable[str]) -> None:
        self._rabbitmq.ctl(
            "eval",
            f"""
            lists:foreach(fun(V) -> catch rabbit_vhost:delete(V, <<"tests">>) end, {_erlang(used)}),
            lists:foreach(fun(V) ->
              ok = rabbit_vhost:add(V, <<"tests">>),
              ok = rabbit_auth_backend_internal:set_permissions(
                <<"guest">>, V, <<".*">>, <<".*">>, <<".*">>, <<"tests">>)
            end, {_erlang(new)}).
            """,
            seconds=120,
        )


def _erlang(names: Iterable[str]) -> str:
    binaries = (f'<<"{name}">>' for name in names)
    return f"[{', '.join(binaries)}]"
