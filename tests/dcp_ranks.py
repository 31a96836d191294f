"""Runs tasks in processes that form a group over gloo.

torch and its distributed half are imported once, by a process that does nothing else than to fork ranks. So a
group is there in a tenth of a second.

    with Ranks() as ranks:
        ranks.run("save", 4, uri, environment=server.environment())     # a function of dcp_tasks.py
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Mapping

HERE = Path(__file__).parent
TASKS = "dcp_tasks"
LATER = ("torch._dynamo", "torchwick.store.s3")  # what ranks would else import each for itself, in seconds


class RankError(AssertionError):
    """A rank failed otherwise than its task expected."""


class Ranks:
    """The process that forks."""

    def __enter__(self) -> Self:
        process = subprocess.Popen(
            [sys.executable, "-c", "import dcp_ranks; dcp_ranks.serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]),
                "OMP_NUM_THREADS": "1",
                "OPENBLAS_NUM_THREADS": "1",
            },
        )
        assert process.stdin
        assert process.stdout
        self._process, self._wishes, self._answers = process, process.stdin, process.stdout
        return self

    def __exit__(self, *_: object) -> None:
        self._wishes.close()
        self._process.wait(timeout=30)
        self._answers.close()

    def run(
        self, task: str, world: int, *arguments: Any, environment: Mapping[str, str] | None = None
    ) -> list[Any]:
        """Run a task in so many ranks, and return what each returned; a rank that was killed returns None.

        Raises:
            RankError: a rank raised something.
        """
        wish = {"task": task, "world": world, "arguments": arguments, "environment": dict(environment or {})}
        self._wishes.write(json.dumps(wish) + "\n")
        self._wishes.flush()
        answers = json.loads(self._answers.readline())
        errors = [answer["error"] for answer in answers if answer and "error" in answer]
        if errors:
            raise RankError("\n\n".join(errors))
        return [answer and answer["value"] for answer in answers]


def serve() -> None:
    """Read tasks from standard input, one a line, and answer each with a line."""
    answers, sys.stdout = sys.stdout, sys.stderr
    for module in (TASKS, *LATER):
        importlib.import_module(module)
    for line in sys.stdin:
        wish = json.loads(line)
        print(json.dumps(_group(**wish)), file=answers, flush=True)


def _group(task: str, world: int, arguments: list[Any], environment: dict[str, str]) -> list[Any]:
    with tempfile.TemporaryDirectory() as folder:
        children = [
            _fork(Path(folder), rank, task=task, world=world, arguments=arguments, environment=environment)
            for rank in range(world)
        ]
        for child in children:
            os.waitpid(child, 0)
        answers = [Path(folder, str(rank)) for rank in range(world)]
        return [json.loads(answer.read_text()) if answer.exists() else None for answer in answers]


def _fork(
    folder: Path,
    rank: int,
    *,
    task: str,
    world: int,
    arguments: list[Any],
    environment: dict[str, str],
) -> int:
    child = os.fork()
    if child:
        return child
    answer: dict[str, Any]
    try:
        os.environ.update(environment, RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank))
        answer = {"value": _in_group(task, rank, world, arguments, folder)}
    except BaseException:  # noqa: BLE001 - whoever waits for the answer raises it
        answer = {"error": f"rank {rank}: {traceback.format_exc()}"}
    with contextlib.suppress(BaseException):
        Path(folder, f"{rank}.new").write_text(json.dumps(answer))
        Path(folder, f"{rank}.new").rename(Path(folder, str(rank)))
    os._exit(0)


def _in_group(task: str, rank: int, world: int, arguments: list[Any], folder: Path) -> Any:
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=world)
    try:
        value = getattr(importlib.import_module(TASKS), task)(*arguments)
        with contextlib.suppress(RuntimeError):  # another one was killed
            dist.barrier()  # no one hangs up while another still listens
        return value
    finally:
        dist.destroy_process_group()
