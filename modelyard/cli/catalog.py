"""The commands `modelyard models` and `modelyard datasets`."""

from typing import Annotated

import typer

from modelyard.cli.documents import entries
from modelyard.cli.options import Context, File
from modelyard.cli.session import session_of

models = typer.Typer(no_args_is_help=True, help="The models of the catalog.")
datasets = typer.Typer(no_args_is_help=True, help="The datasets of the catalog.")

Name = Annotated[str, typer.Argument(help="The name of the entry.")]


@models.command("list")
def list_models(ctx: Context) -> None:
    """List the models."""
    session_of(ctx).out.models(session_of(ctx).yard.models())


@models.command("get")
def get_model(ctx: Context, name: Name) -> None:
    """Show a model."""
    session_of(ctx).out.one(session_of(ctx).yard.model(name))


@models.command("footprints")
def model_footprints(ctx: Context, name: Name) -> None:
    """Show what a model was measured to take in memory, by image and kind of device."""
    session_of(ctx).out.footprints(session_of(ctx).yard.footprints(name))


@models.command("apply")
def apply_model(ctx: Context, file: File) -> None:
    """Store the model of a file under its name, or each of several in one YAML file."""
    session = session_of(ctx)
    for entry in entries(file):
        session.out.one(session.yard.put_model(entry))


@models.command("delete")
def delete_model(ctx: Context, name: Name) -> None:
    """Delete a model."""
    session_of(ctx).yard.delete_model(name)


@datasets.command("list")
def list_datasets(ctx: Context) -> None:
    """List the datasets."""
    session_of(ctx).out.datasets(session_of(ctx).yard.datasets())


@datasets.command("get")
def get_dataset(ctx: Context, name: Name) -> None:
    """Show a dataset."""
    session_of(ctx).out.one(session_of(ctx).yard.dataset(name))


@datasets.command("apply")
def apply_dataset(ctx: Context, file: File) -> None:
    """Store the dataset of a file under its name, or each of several in one YAML file."""
    session = session_of(ctx)
    for entry in entries(file):
        session.out.one(session.yard.put_dataset(entry))


@datasets.command("delete")
def delete_dataset(ctx: Context, name: Name) -> None:
    """Delete a dataset."""
    session_of(ctx).yard.delete_dataset(name)
