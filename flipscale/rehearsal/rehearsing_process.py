"""Starts the processes of a rehearsal, and returns what they answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flipscale.errors import UserError
from flipscale.rehearsal.accelerator import NoAccelerator, build_accelerator
from flipscale.rehearsal.request import Request


class RehearsingProcesses:
    """The processes of one rehearsal, with the fake GPU that they share.

    Args:
        request: What to rehearse.
        directory: An empty directory for the fake GPU's library and the answers.

    Attributes:
        limits: What the processes cannot look at on this machine.
        sees_waits: Whether they see where the host waits for the device.
    """

    def __init__(self, request: Request, directory: Path) -> None:
        self._request = request
        self._directory = directory
        self._library = ""
        self._running: set[subprocess.Popen[str]] = set()
        self._given_up = False
        self.limits: tuple[str, ...] = ()
        try:
            self._library = str(build_accelerator(directory))
        except NoAccelerator as error:
            self.limits = (
                f"{error}, so that the step ran on fake CPU tensors: waits of the host cannot be seen, and "
                "attention is that of a CPU",
            )
        self.sees_waits = bool(self._library)

    @contextmanager
    def killed_on_error(self) -> Generator[None]:
        """Kill the processes that other threads of this one wait for, if the block ends with an exception."""
        try:
            yield
        except BaseException:
            self._given_up = True
            for process in list(self._running):
                process.kill()
            raise

    def rehearse_phase(self, phase: int) -> dict[str, Any]:
        """Return the fields of a `StepRecord` of one phase.

        Args:
            phase: The number of the phase.

        Raises:
            UserError: If the step cannot be run on fake tensors.
        """
        return self._ask({"phase": phase, "library": self._library})

    def count_graphs(self) -> dict[str, Any]:
        """Return the fields of a `CompileResult`.

        Raises:
            UserError: If the blocks cannot be compiled.
        """
        return self._ask({"phase": None, "library": ""})

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        request = self._request
        gpu = request.on.gpu
        answer = self._directory / f"{question['phase']}.json"
        question |= {
            "job": request.job.model_dump_json(),
            "rank": request.rank,
            "gpus": request.on.gpus,
            "ranks_per_node": request.ranks_per_node,
            "time": {
                "peak_flops": gpu.peak_flops,
                "exact_flops": gpu.fp32_flops,
                "bandwidth": gpu.bandwidth,
            },
            "answer": str(answer),
            "parent": os.getpid(),
        }
        code, output = self._run(json.dumps(question))
        if code or not answer.exists():
            strategy = request.job.sharding.strategy
            raise UserError(
                f"strategy {strategy} cannot be rehearsed with this job: {_reason(output)}; "
                "`flipscale plan` estimates its memory and time"
            )
        return json.loads(answer.read_text())

    def _run(self, question: str) -> tuple[int, str]:
        """Return the exit code of a process that was handed a question, and what it wrote to stderr."""
        process = subprocess.Popen(
            [sys.executable, "-m", "flipscale.rehearsal.child"],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._running.add(process)
        if self._given_up:  # another thread has killed the others just before
            process.kill()
        try:
            _, output = process.communicate(question)
        except BaseException:
            process.kill()
            raise
        finally:
            self._running.discard(process)
        return process.returncode, output


def _reason(output: str) -> str:
    """Return the line of a traceback that names its error."""
    lines = [line.removeprefix("[rank0]: ").strip() for line in output.splitlines()]
    lines = [line for line in lines if line]
    errors = [line for line in lines if line.split(":")[0].endswith(("Error", "Exception"))]
    return (errors or lines or ["its process ended without a word"])[-1][:300]
