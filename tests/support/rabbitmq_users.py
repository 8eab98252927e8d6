"""Users of RabbitMQ with the rights that Modelyard documents, from the command that makes them."""

import json
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from typer.testing import CliRunner

from deploy.local.rabbitmq import RabbitMQ
from modelyard.cli_rabbitmq import rabbitmq as command


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

    def enter(self, vhost: str) -> None:
        """Make a virtual host, its queues, and the rights of everybody there."""
        options = [*self._options, f"--vhost={vhost}", f"--passwords={self._passwords}"]
        made = CliRunner().invoke(command, ["definitions", *options])
        assert made.exit_code == 0, made.output
        document = self._folder / f"{vhost}.json"
        document.write_text(made.stdout)
        self._rabbitmq.ctl("import_definitions", str(document))

    def leave(self, *vhosts: str) -> None:
        """Delete virtual hosts, and then the users."""
        for vhost in vhosts:
            self._rabbitmq.ctl("delete_vhost", vhost)
        for user in self.passwords:
            self._rabbitmq.ctl("delete_user", user)

    @property
    def passwords(self) -> dict[str, str]:
        """The password of each user."""
        known: dict[str, str] = json.loads(self._passwords.read_text())
        return known

    def url(self, user: str, vhost: str) -> str:
        """Return the AMQP URI with which a user comes in."""
        place = self._rabbitmq.url.partition("@")[2]
        return f"amqp://{quote(user)}:{quote(self.passwords[user])}@{place}/{quote(vhost, safe='')}"
