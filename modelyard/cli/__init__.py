"""The command line: `modelyard`. One module for each group of commands."""

from modelyard.cli.main import app

__all__ = ["app"]
