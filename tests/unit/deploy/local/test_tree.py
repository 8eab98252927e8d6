"""Servers of another Debian, in a folder."""

from pathlib import Path

import pytest

from deploy.compat import __main__ as compat
from deploy.local import tree
from deploy.local.errors import CannotProvide
from deploy.local.progress import Progress
from deploy.local.rabbitmq import RabbitMQ


def test_without_the_variable_the_machine_s_own_servers_are_meant(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(tree.VARIABLE, "")
    assert tree.servers_tree() is None


def test_a_folder_that_holds_no_system_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(tree.VARIABLE, str(tmp_path))
    with pytest.raises(CannotProvide, match="holds no system; `make compat` makes one"):
        RabbitMQ(tmp_path / "rabbitmq").start()


def test_a_tree_that_lacks_a_server_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "usr").mkdir()
    monkeypatch.setenv(tree.VARIABLE, str(tmp_path))
    with pytest.raises(CannotProvide, match=r"rabbitmq_server-\*/sbin/rabbitmq-server; remove it"):
        RabbitMQ(tmp_path / "rabbitmq").start()


def test_only_root_can_make_a_tree(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1_000)
    with pytest.raises(CannotProvide, match="Only root"):
        compat.ensure_tree(tmp_path / "trixie", Progress())
    assert [*tmp_path.iterdir()] == []


def test_the_versions_are_those_that_the_tree_names(tmp_path: Path) -> None:
    status = tmp_path / "var/lib/dpkg/status"
    status.parent.mkdir(parents=True)
    status.write_text(
        "Package: docker.io-doc\nVersion: 1\n\nPackage: docker.io\nStatus: ok\nVersion: 26.1\n\n"
    )
    assert compat.version_of(tmp_path, "docker.io") == "26.1"
