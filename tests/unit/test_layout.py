"""The layout that newcomers rely on: small folders, and one owner for each class name."""

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("modelyard", "gateway", "dispatcher", "worker")
MOST_MODULES = 14


def modules() -> list[Path]:
    found = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    assert len(found) > 100
    return found


def test_no_folder_has_more_modules_than_one_sees_at_once() -> None:
    folders: dict[Path, list[str]] = defaultdict(list)
    for path in modules():
        if path.name != "__init__.py":
            folders[path.parent].append(path.stem)
    assert {folder: names for folder, names in folders.items() if len(names) > MOST_MODULES} == {}


def test_no_class_name_occurs_twice() -> None:
    owners: dict[str, set[Path]] = defaultdict(set)
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                owners[node.name].add(path)
    assert {name: paths for name, paths in owners.items() if len(paths) > 1} == {}


def test_every_package_says_what_it_is_for() -> None:
    for path in modules():
        if path.name == "__init__.py":
            assert ast.get_docstring(ast.parse(path.read_text())), path


def test_what_may_hang_runs_in_no_thread_that_is_joined() -> None:
    """A worker whose driver or file system hangs must be able to exit."""
    joined = {"to_thread", "run_in_executor"}
    users = {
        str(path.relative_to(ROOT))
        for path in modules()
        if path.relative_to(ROOT).parts[0] in {"worker", "modelyard"}
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in joined
    }
    assert users == {"modelyard/process/tasks.py"}  # in_daemon_thread
