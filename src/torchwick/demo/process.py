"""A server process in a temporary directory that never outlives the Python process that started it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

LOG_LINES: Final = 20  # how much of the log an error shows

# Ends the server when its own standard input closes, which the kernel sees to however the parent ends.
WATCH: Final = 'cat > /dev/null; kill -9 "-$1"; shift; rm -rf -- "$@"'


class TemporaryProcess:
    """A process group with a directory of its own; both are gone after `close`, or when the parent is."""

    def __init__(self, make_command: Callable[[Path], Sequence[str]], *, litter: Sequence[Path] = ()) -> None:
        """Start the process.

        Args:
            make_command: Called with the new directory, where it may write files; returns the command.
                The command starts in that directory, which is its home too.
            litter: Files that the process leaves elsewhere, to be removed after it.
        """
        self._litter = list(litter)
        self._directory = Path(tempfile.mkdtemp(prefix="torchwick-"))
        self._log = self._directory / "log"
        with ExitStack() as undo:
            undo.callback(shutil.rmtree, self._directory, ignore_errors=True)
            self._process = self._launch(make_command(self._directory))
            undo.pop_all()
        self._watcher = subprocess.Popen(  # noqa: S603 - a constant script; paths are its arguments
            ["/bin/sh", "-c", WATCH, "sh", str(self._process.pid), self._directory, *self._litter],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """The id of the process, and of its group."""
        return self._process.pid

    @property
    def exit_status(self) -> int | None:
        """The status the process ended with; None while it runs."""
        return self._process.poll()

    def log_tail(self) -> str:
        """Return the last lines that the process wrote."""
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-LOG_LINES:])

    def close(self) -> None:
        """End the process group at once and remove its directory."""
        self._watcher.kill()  # first: later it could signal another process that was given the same id
        self._watcher.communicate()
        if self._process.returncode is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        shutil.rmtree(self._directory, ignore_errors=True)
        for path in self._litter:
            path.unlink(missing_ok=True)

    def _launch(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        with self._log.open("wb") as log:
            return subprocess.Popen(  # noqa: S603 - the caller's command, without a shell
                command,
                cwd=self._directory,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C at the terminal is the parent's to handle
            )

    def _environment(self) -> Mapping[str, str]:
        """Return all that the process gets to see: none of the user's variables and configuration files."""
        return {"HOME": str(self._directory), "PATH": os.defpath}
