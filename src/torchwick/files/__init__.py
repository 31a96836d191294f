"""Objects as files: for whatever takes a file, and knows nothing of S3. Never imports torch."""

from torchwick.files.file import File
from torchwick.files.open_file import open_file

__all__ = ["File", "open_file"]
