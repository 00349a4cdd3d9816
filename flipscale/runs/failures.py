"""Why a segment ended badly, by its error, its processes' last heartbeats and Slurm's words in the log."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from flipscale.addresses import without_secrets
from flipscale.errors import Reason, RunError, StoppedEarly, UserError
from flipscale.files import read_regular, storage_problem
from flipscale.runs.heartbeat import Heartbeat

TRANSIENT: frozenset[Reason] = frozenset(
    {"preempted", "timeout", "node_failure", "lost_process", "hang", "bad_node", "data", "storage", "killed"}
)
"""Ends after which the same job is worth another start: their cause is outside of the run."""

# torch's words for a loader worker that the kernel ended, mostly for its memory.
_WORKER_KILLED = re.compile(
    r"DataLoader worker \(pid(\(s\))? [\d, ]+\) "
    r"(is killed by signal: (Killed|Terminated)|exited unexpectedly$)"
)
# The words of gloo and NCCL for a lost peer process.
_LOST = re.compile(
    r"gloo/|NCCL|ProcessGroup|connection (closed|reset) by peer|broken pipe|remote process exited",
    re.IGNORECASE,
)
# The words of CUDA, and of NCCL for CUDA, for a GPU that has failed. An unknown error counts as one: a few
# more starts cost less than a run that ends permanently.
_GPU_FAILED = re.compile(
    r"CUDA (driver )?error: |Cuda failure |CUBLAS_STATUS_|CUDNN_STATUS_|cudaGetDeviceCount|No CUDA GPUs"
)
# These come from the program or its settings, and would come again on another GPU.
_OF_PROGRAM = re.compile(
    r"device-side assert|invalid (argument|configuration|device (function|ordinal))|misaligned address"
    r"|no kernel image|CUBLAS_STATUS_(INVALID_VALUE|NOT_SUPPORTED)|CUDNN_STATUS_(BAD_PARAM|NOT_SUPPORTED)"
)
_OUT_OF_MEMORY = re.compile(
    r"(CUDA (driver )?error: |Cuda failure .?)out of memory|(CUBLAS|CUDNN)_STATUS_ALLOC_FAILED"
)
_SLURM_WORDS: dict[str, Reason] = {
    "DUE TO NODE FAILURE": "node_failure",
    "DUE TO PREEMPTION": "preempted",
    "DUE TO TIME LIMIT": "timeout",
    "oom_kill": "out_of_memory",
    "oom-kill": "out_of_memory",
}
_CANCELLED_AT = re.compile(r"CANCELLED AT (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)")


@dataclass(frozen=True)
class Failure:
    """Why a process or a segment ended.

    Attributes:
        kind: The reason, as a word of the ledger.
        message: The reason, as a sentence for a person.
        suspects: The nodes that are blamed for it.
    """

    kind: Reason
    message: str
    suspects: tuple[str, ...] = ()


def failure_of(error: BaseException, node: str = "") -> Failure:
    """Classify the error that ended a process.

    Args:
        error: What ended it.
        node: The node of the process, which is blamed if one of its GPUs has failed; empty if it has no name.
    """
    message = without_secrets(_first_line(error))  # the ledger keeps it
    if isinstance(error, UserError):
        return Failure("input", message)
    if isinstance(error, RunError):
        return Failure(error.kind, message, error.suspects)
    if isinstance(error, StoppedEarly):
        return Failure(error.reason, message)
    if isinstance(error, KeyboardInterrupt):
        return Failure("stopped", "interrupted")
    if (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)))
    ):
        return Failure("out_of_memory", f"{message}; set sharding.micro_batch or activation_checkpointing")
    if isinstance(error, RuntimeError) and _WORKER_KILLED.search(message):
        return Failure("killed", f"a loader worker was killed, perhaps for its memory: {message}")
    if isinstance(error, RuntimeError) and _gpu_has_failed(str(error)):
        return Failure("bad_node", f"a GPU has failed: {message}", (node,) if node else ())
    if type(error).__name__.startswith("Dist") or (
        isinstance(error, RuntimeError) and _LOST.search(str(error))
    ):
        return Failure("lost_process", f"another process is gone: {message}")
    if (problem := storage_problem(error)) is not None:
        return Failure("disk", problem)
    return Failure("code", f"{type(error).__name__}: {message}")


def verdict(own: Failure, beats: list[Heartbeat]) -> Failure:
    """Find the cause behind a lost process: the first failure of a peer, or else the silent nodes.

    Call it only after all processes had time to write their last heartbeat.

    Args:
        own: The failure of this process.
        beats: The last heartbeats of all processes of this start.

    Returns:
        The failure of the first peer that failed for a reason of its own. If there is none, a lost process;
        its suspects are the nodes of all processes that have not reported a failure.
    """
    if own.kind != "lost_process":
        return own

    causes = [beat for beat in beats if beat.state == "failed" and beat.kind != "lost_process"]
    if causes:
        first = min(causes, key=lambda beat: beat.time)
        message = f"rank {first.rank} on {first.node}: {first.message}"
        return Failure(first.kind or "code", message, first.suspects)

    silent = [beat for beat in beats if beat.state != "failed"]
    if not silent:
        return own

    nodes = tuple(dict.fromkeys(beat.node for beat in silent))
    ranks = ", ".join(str(beat.rank) for beat in silent[:8])
    return Failure("lost_process", f"rank {ranks} on {', '.join(nodes)} ended without a message", nodes)


def slurm_verdict(log: Path, since: datetime) -> Reason | None:
    """Return the last reason that Slurm wrote into a job's log.

    Args:
        log: The log of the job; it need not exist.
        since: Lines that Slurm stamped earlier do not count; naive local time, as in Slurm's stamps.

    Returns:
        The reason; None if the log has none.
    """
    try:
        lines = read_regular(log).decode(errors="replace").splitlines()
    except OSError:
        return None

    for line in reversed(lines):
        stamp = _CANCELLED_AT.search(line)
        if stamp and datetime.fromisoformat(stamp.group(1)) < since:
            return None

        for words, kind in _SLURM_WORDS.items():
            if words in line:
                return kind
    return None


def _gpu_has_failed(message: str) -> bool:
    return _GPU_FAILED.search(message) is not None and _OF_PROGRAM.search(message) is None


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:500] if lines else type(error).__name__
