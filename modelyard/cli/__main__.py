"""`python -m modelyard.cli` is `modelyard`."""

from modelyard.cli import app

app()
