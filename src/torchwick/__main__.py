"""``python -m torchwick`` is the command ``torchwick``."""

from torchwick.cli import main

main()
