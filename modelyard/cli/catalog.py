"""The commands `modelyard models` and `modelyard datasets`."""

from typing import Annotated

import typer

from modelyard.cli.documents import entries
from modelyard.cli.options import Context, File
from modelyard.cli.session import Session, session_of
from modelyard.client import Stored
from modelyard.contract.catalog.entries import DatasetSpec, ModelSpec
from modelyard.contract.strict_json import JsonValue

models = typer.Typer(no_args_is_help=True, help="The models of the catalog.")
datasets = typer.Typer(no_args_is_help=True, help="The datasets of the catalog.")


def _as_tag(given: str | None) -> str | None:
    """Return an entity tag as HTTP has it; a shell may have eaten its quotes."""
    if given is None or given == "*" or '"' in given:
        return given
    return f'"{given}"'


Name = Annotated[str, typer.Argument(help="The name of the entry.")]
Etag = Annotated[
    bool, typer.Option("--etag", help="Print the ETag of this version alone, for --if-match.")
]
IfMatch = Annotated[
    str | None,
    typer.Option(
        metavar="ETAG",
        callback=_as_tag,
        help="Only if the entry still is the version with this ETag; * is any, if it exists.",
    ),
]


@models.command("list")
def list_models(ctx: Context) -> None:
    """List the models."""
    session_of(ctx).out.models(session_of(ctx).yard.models())


@models.command("get")
def get_model(ctx: Context, name: Name, *, etag: Etag = False) -> None:
    """Show a model."""
    session = session_of(ctx)
    _show(session, session.yard.stored_model(name), etag_alone=etag)


@models.command("footprints")
def model_footprints(ctx: Context, name: Name) -> None:
    """Show what a model was measured to take in memory, by image and kind of device."""
    session_of(ctx).out.footprints(session_of(ctx).yard.footprints(name))


@models.command("apply")
def apply_model(ctx: Context, file: File, if_match: IfMatch = None) -> None:
    """Store the model of a file under its name, or each of several in one YAML file."""
    session = session_of(ctx)
    for entry in _to_apply(file, if_match):
        session.out.one(session.yard.put_model(entry, if_match=if_match))


@models.command("delete")
def delete_model(ctx: Context, name: Name, if_match: IfMatch = None) -> None:
    """Delete a model."""
    session_of(ctx).yard.delete_model(name, if_match=if_match)


@datasets.command("list")
def list_datasets(ctx: Context) -> None:
    """List the datasets."""
    session_of(ctx).out.datasets(session_of(ctx).yard.datasets())


@datasets.command("get")
def get_dataset(ctx: Context, name: Name, *, etag: Etag = False) -> None:
    """Show a dataset."""
    session = session_of(ctx)
    _show(session, session.yard.stored_dataset(name), etag_alone=etag)


@datasets.command("apply")
def apply_dataset(ctx: Context, file: File, if_match: IfMatch = None) -> None:
    """Store the dataset of a file under its name, or each of several in one YAML file."""
    session = session_of(ctx)
    for entry in _to_apply(file, if_match):
        session.out.one(session.yard.put_dataset(entry, if_match=if_match))


@datasets.command("delete")
def delete_dataset(ctx: Context, name: Name, if_match: IfMatch = None) -> None:
    """Delete a dataset."""
    session_of(ctx).yard.delete_dataset(name, if_match=if_match)


def _show(
    session: Session, found: Stored[ModelSpec] | Stored[DatasetSpec], *, etag_alone: bool
) -> None:
    if etag_alone:
        session.out.line(found.etag)
        return
    session.out.one(found.entry)
    if not session.out.as_json:
        session.out.note(f"ETag {found.etag}")


def _to_apply(file: str, if_match: str | None) -> list[dict[str, JsonValue]]:
    """Return the entries of a file; raises `typer.BadParameter` if a tag is given for several."""
    found = entries(file)
    if if_match is not None and len(found) > 1:
        raise typer.BadParameter(
            f"{file} holds {len(found)} entries; an ETag is that of one", param_hint="--if-match"
        )
    return found
