"""Ask Slurm about itself and about jobs: one function per question, each with a time limit."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from flipscale.errors import UserError

_SECONDS = 30  # a healthy controller answers much faster; clients wait minutes for one that is gone
_FIELD = re.compile(r"(?:^|\s)([A-Za-z][A-Za-z0-9_/:.]*)=")

JOB_ID = r"[0-9]{1,20}(?:_[0-9]{1,20})?"
"""The pattern of a job id: `123`, or `123_4` for an element of an array."""
_JOB_ID = re.compile(JOB_ID)
_NODE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")

# The states of jobs that Slurm will still start, and of those that it has started and not ended.
_PENDING = frozenset({"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT"})
_STARTED = frozenset({"RUNNING", "SUSPENDED", "COMPLETING", "SIGNALING", "STAGE_OUT", "RESIZING", "STOPPED"})
_UNUSABLE = ("down", "drain", "drng", "fail", "unk", "inval")  # beginnings of sinfo's short states
LIVE_STATES = _PENDING | _STARTED

_NO_ANSWER = ("timed out", "Unable to contact")  # in messages about a controller that is busy or gone


class SlurmError(Exception):
    """Slurm refused a command or did not answer; the message is Slurm's."""


class NoAnswerError(SlurmError):
    """Slurm did not answer; it may have carried out the request nevertheless."""


@dataclass(frozen=True)
class JobState:
    """A job as `squeue` or `sacct` lists it."""

    job_id: str
    state: str
    """RUNNING, PENDING, TIMEOUT, ...; without the details that sacct adds."""
    reason: str
    """Why the job waits, or empty."""
    nodes: str
    """The job's nodes, as Slurm abbreviates them."""
    started: float | None = None
    """When the job last started, in seconds since 1970; None if Slurm does not say it."""

    @property
    def live(self) -> bool:
        """Whether the job waits or runs."""
        return self.state in LIVE_STATES

    @property
    def waits(self) -> bool:
        """Whether Slurm has yet to start the job."""
        return self.state in _PENDING


def is_job_id(text: str) -> bool:
    """Return whether a text can be the id of a job; anything else may be an option or a line of shell."""
    return _JOB_ID.fullmatch(text) is not None


def is_node_name(text: str) -> bool:
    """Return whether a text can be the name of a node; anything else may be an option or a line of shell."""
    return _NODE_NAME.fullmatch(text) is not None


def run_slurm(*command: str, stdin: str | None = None) -> str:
    """Run a command of Slurm and return what it prints.

    Args:
        command: The command and its arguments.
        stdin: What it reads; None for nothing.

    Raises:
        SlurmError: If Slurm refuses the command.
        NoAnswerError: If it is unknown whether Slurm carried out the command.
        UserError: If the command is not installed.
    """
    if shutil.which(command[0]) is None:
        raise UserError(
            f"there is no {command[0]} on PATH; run this where Slurm's commands are, or use --cluster local"
        )

    environment = {**os.environ, "SLURM_TIME_FORMAT": "standard"}  # a user may prefer another one
    try:
        done = subprocess.run(
            command,
            env=environment,
            input=stdin or "",
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise NoAnswerError(f"{command[0]} did not answer within {_SECONDS} s") from None

    # Slurm ends all processes of a job, including a client that one of them runs.
    if done.returncode < 0:
        raise NoAnswerError(f"{command[0]} was ended by signal {-done.returncode} before it answered")
    if done.returncode:
        message = " ".join(done.stderr.split()) or f"{command[0]} ended with {done.returncode}"
        unanswered = any(words in message for words in _NO_ANSWER)
        raise NoAnswerError(message) if unanswered else SlurmError(message)

    return done.stdout


def read_configuration() -> dict[str, str]:
    """Return the controller's settings by their names in slurm.conf, and `SLURM_VERSION`.

    Raises:
        SlurmError: As `run_slurm` does; so do the other questions.
    """
    pairs = (line.partition("=") for line in run_slurm("scontrol", "show", "config").splitlines())
    return {key.strip(): value.strip() for key, separator, value in pairs if separator}


def read_partitions() -> dict[str, dict[str, str]]:
    """Return the settings of every partition (MaxTime, GraceTime, PreemptMode, ...) by its name."""
    records = [_fields(line) for line in run_slurm("scontrol", "show", "partition", "-o").splitlines()]
    return {record["PartitionName"]: record for record in records if "PartitionName" in record}


def read_nodes(partition: str | None) -> list[str]:
    """Return the names of the nodes of a partition that are not down or drained.

    Args:
        partition: Name of the partition; None for the cluster's default.
    """
    nodes: list[str] = []
    for line in run_slurm("sinfo", "--noheader", "--Node", "--format=%P|%N|%t").splitlines():
        name, node, state = line.split("|", 2)
        wanted = name.endswith("*") if partition is None else name.removesuffix("*") == partition
        if wanted and not state.startswith(_UNUSABLE):
            nodes.append(node)
    return nodes


def expand_node_list(nodes: str) -> list[str]:
    """Return the names that an abbreviated list such as n[1-3,7] stands for."""
    return run_slurm("scontrol", "show", "hostnames", nodes).split()


def exclude_nodes(job_id: str, nodes: Sequence[str]) -> None:
    """Let a job that waits avoid nodes, and no others.

    Args:
        job_id: The id of the job.
        nodes: Names, or abbreviated lists as in `expand_node_list`.
    """
    run_slurm("scontrol", "update", f"JobId={job_id}", f"ExcNodeList={','.join(nodes)}")


def read_node_address(node: str) -> str:
    """Return the address that Slurm has for a node; empty if it has none."""
    described = run_slurm("scontrol", "show", "node", "-o", node)
    return next((field[9:] for field in described.split() if field.startswith("NodeAddr=")), "")


def query_job(job_id: str) -> dict[str, str] | None:
    """Return the controller's record of a job (JobState, Restarts, EndTime, ...), or None if it is gone.

    Args:
        job_id: The id. Slurm has no job of another text, which is not passed on to it.
    """
    if not is_job_id(job_id):
        return None

    try:
        return _fields(run_slurm("scontrol", "show", "job", "-o", job_id).splitlines()[0])
    except SlurmError as error:
        if "Invalid job id" in str(error):
            return None
        raise


def query_queue(job_ids: Sequence[str]) -> dict[str, JobState]:
    """Return what `squeue` knows about jobs, by id, in one query.

    The controller forgets a job minutes after its end.

    Args:
        job_ids: `123`, or `123_4` for an element of an array.
    """
    if not job_ids:
        return {}
    return _parse_list(
        run_slurm("squeue", "--me", "-h", "-r", "--states=all", "-o", "%i|%T|%r|%N|%S"), job_ids
    )


def query_accounting(job_ids: Sequence[str]) -> dict[str, JobState]:
    """Return what `sacct` knows about jobs that the controller has forgotten, by id, in one query.

    Entries of jobs that wait or run are ignored. An array's element that is cancelled while it waits is not
    reported to the accounting, which lists it as waiting for as long as the array lasts.

    Args:
        job_ids: `123`, or `123_4` for an element of an array.
    """
    # For an element of an array sacct may list nothing; for the whole array it lists the element.
    whole = ",".join(dict.fromkeys(job_id.partition("_")[0] for job_id in job_ids if is_job_id(job_id)))
    if not whole:
        return {}
    out = run_slurm("sacct", "-n", "-P", "-X", "-j", whole, "-o", "JobID,State,Reason,NodeList,Start")
    return {job_id: state for job_id, state in _parse_list(out, job_ids).items() if not state.live}


def cancel_jobs(job_ids: Sequence[str], *, waiting: bool = False) -> None:
    """Cancel jobs.

    Args:
        job_ids: As for `query_queue`. Slurm has no job of another text, which is not passed on to it.
        waiting: Cancel only those that have not started.
    """
    if known := [job_id for job_id in job_ids if is_job_id(job_id)]:
        run_slurm("scancel", *(["--state=PENDING"] if waiting else []), *known)


def parse_time_limit(limit: str) -> int | None:
    """Return a time of Slurm in seconds, or None if it is unlimited.

    Args:
        limit: D-HH[:MM[:SS]], HH:MM:SS, MM:SS, or a number of minutes.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", limit)
    if match is None:
        return None

    days, first, second, third = (int(group) if group else 0 for group in match.groups())
    if match.group(1) or match.group(4):
        return ((days * 24 + first) * 60 + second) * 60 + third
    return first * 60 + second


def sends_user_signal(settings: Mapping[str, str]) -> bool:
    """Return whether preemption sends the job's own signal; the setting moved between releases of Slurm."""
    return "preempt_send_user_signal" in settings.get("SlurmctldParameters", "") or (
        "send_user_signal" in settings.get("PreemptParameters", "")
    )


def _parse_list(out: str, job_ids: Sequence[str]) -> dict[str, JobState]:
    """Return the states of `job_ids` from lines of the form id|state|reason|nodes|start."""
    states: dict[str, JobState] = {}
    for line in out.splitlines():
        listed, state, reason, nodes, *start = line.split("|")
        for job_id in _matching_ids(listed, job_ids):
            started = parse_time("".join(start))
            why = "" if reason == "None" else reason
            states[job_id] = JobState(job_id, state.split()[0], why, nodes, started)
    return states


def parse_time(stamp: str) -> float | None:
    """Return a time of Slurm, which is local, in seconds since 1970; None if it is not known."""
    try:
        return datetime.fromisoformat(stamp).timestamp()
    except ValueError:  # N/A, Unknown, None
        return None


def _matching_ids(listed: str, job_ids: Sequence[str]) -> list[str]:
    """Return those of `job_ids` that a listed id stands for.

    An id such as `123_[0-3,4%2]` stands for `123_4` and all other elements of the array that wait.
    """
    array = re.fullmatch(r"(\d+)_\[([\d,-]+)(?:%\d+)?\]", listed)
    if array is None:
        return [listed] if listed in job_ids else []

    spans = [span.partition("-") for span in array[2].split(",")]
    ranges = [(int(first), int(last or first)) for first, _, last in spans if first]
    matching: list[str] = []
    for job_id in job_ids:
        parent, _, element = job_id.partition("_")
        if parent == array[1] and element.isdigit():
            matching += [job_id for low, high in ranges if low <= int(element) <= high]
    return matching


def _fields(line: str) -> dict[str, str]:
    """Return the `Key=value` pairs of a `scontrol -o` line; a value reaches to the next key."""
    keys = list(_FIELD.finditer(line))
    ends = [match.start() for match in keys[1:]] + [len(line)]
    return {match.group(1): line[match.end() : end].strip() for match, end in zip(keys, ends, strict=True)}
