"""Users of RabbitMQ with the rights that Modelyard documents, from the command that makes them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from typer.testing import CliRunner

from deploy.local.rabbitmq import RabbitMQ
from modelyard.cli.rabbitmq import rabbitmq as command


class Users:
    """Users made by `modelyard rabbitmq definitions` and RabbitMQ's own import.

    The documents lie in `folder`, which has to exist and is the test's own.
    """

    def __init__(
        self,
        rabbitmq: RabbitMQ,
        folder: Path,
        *,
        hosts: Sequence[str] = (),
        publishers: Sequence[str] = (),
        subscribers: Sequence[str] = (),
    ) -> None:
        self._rabbitmq = rabbitmq
        self._folder = folder
        self._passwords = folder / "passwords.json"
        named = (("host", hosts), ("publisher", publishers), ("subscriber", subscribers))
        self._options = [f"--{name}={value}" for name, values in named for value in values]

    def enter(self, *vhosts: str, queues: bool = True) -> None:
        """Make virtual hosts, their queues, and the rights of everybody there; all to the guest."""
        documents = [self._definitions(vhost) for vhost in vhosts]
        whole: dict[str, list[Any]] = {
            part: [one for document in documents for one in document[part]]
            for part in ("vhosts", "permissions", "topic_permissions")
        }
        whole["users"] = documents[0]["users"]
        rights = dict.fromkeys(("configure", "write", "read"), ".*")
        whole["permissions"] += [{"user": "guest", "vhost": one, **rights} for one in vhosts]
        for part in ("exchanges", "queues", "bindings") if queues else ():
            whole[part] = [one for document in documents for one in document[part]]
        file = self._folder / "definitions.json"
        file.write_text(json.dumps(whole))
        self._rabbitmq.ctl("import_definitions", str(file))

    def _definitions(self, vhost: str) -> dict[str, list[Any]]:
        options = [*self._options, f"--vhost={vhost}", f"--passwords={self._passwords}"]
        made = CliRunner().invoke(command, ["definitions", *options])
        assert made.exit_code == 0, made.output
        document: dict[str, list[Any]] = json.loads(made.stdout)
        return document

    def leave(self, *vhosts: str) -> None:
        """Delete virtual hosts, and then the users."""
        gone = [
            *(f'rabbit_vhost:delete(<<"{vhost}">>, <<"tests">>)' for vhost in vhosts),
            *(
                f'rabbit_auth_backend_internal:delete_user(<<"{user}">>, <<"tests">>)'
                for user in self.passwords
            ),
        ]
        self._rabbitmq.ctl("eval", f"{', '.join(gone)}, ok.")

    @property
    def passwords(self) -> dict[str, str]:
        """The password of each user."""
        known: dict[str, str] = json.loads(self._passwords.read_text())
        return known

    def url(self, user: str, vhost: str) -> str:
        """Return the AMQP URI with which a user comes in."""
        place = self._rabbitmq.url.partition("@")[2]
        return f"amqp://{quote(user)}:{quote(self.passwords[user])}@{place}/{quote(vhost, safe='')}"
