"""``python -m torchwick`` is the command ``torchwick``."""

from torchwick.cli import app

app(prog_name="torchwick")
