"""What Slurm says about itself and about jobs: one command a question, each with a time limit."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flipscale.errors import UserError

_SECONDS = 30  # a healthy controller answers in far less; a client without one waits for minutes
_FIELD = re.compile(r"(?:^|\s)([A-Za-z][A-Za-z0-9_/:.]*)=")

# Job states in which Slurm will still start the job or has not ended it.
_WAITING = frozenset({"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT"})
_AT_WORK = frozenset({"RUNNING", "SUSPENDED", "COMPLETING", "SIGNALING", "STAGE_OUT", "RESIZING", "STOPPED"})
LIVE_STATES = _WAITING | _AT_WORK

_NO_ANSWER = ("timed out", "Unable to contact")  # what clients say of a controller that is busy or gone


class SlurmError(Exception):
    """Slurm refused a command or did not answer; the message is what it said."""


class NoAnswerError(SlurmError):
    """Slurm did not answer: a request may have come through nevertheless."""


@dataclass(frozen=True)
class JobState:
    """A job as `squeue` or `sacct` lists it."""

    job_id: str
    state: str
    """RUNNING, PENDING, TIMEOUT, ...; without the details that sacct adds."""
    reason: str
    """Why it waits, or empty."""
    nodes: str

    @property
    def live(self) -> bool:
        return self.state in LIVE_STATES

    @property
    def waits(self) -> bool:
        """Slurm has yet to start it."""
        return self.state in _WAITING


def run_slurm(*command: str) -> str:
    """Run a Slurm command; return what it prints.

    Raises SlurmError, NoAnswerError where it is not known what came of the command, UserError where it is not
    installed.
    """
    if shutil.which(command[0]) is None:
        raise UserError(
            f"there is no {command[0]} on PATH; run this where Slurm's commands are, or use --cluster local"
        )
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise NoAnswerError(f"{command[0]} did not answer within {_SECONDS} s") from None
    if done.returncode < 0:  # Slurm ends all processes of a job, also the client that one of them runs
        raise NoAnswerError(f"{command[0]} was ended by signal {-done.returncode} before it answered")
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"{command[0]} ended with {done.returncode}"
        raise (NoAnswerError if any(words in said for words in _NO_ANSWER) else SlurmError)(said)
    return done.stdout


def read_configuration() -> dict[str, str]:
    """The controller's settings, by the names of slurm.conf; `SLURM_VERSION` too."""
    pairs = (line.partition("=") for line in run_slurm("scontrol", "show", "config").splitlines())
    return {key.strip(): value.strip() for key, separator, value in pairs if separator}


def read_partitions() -> dict[str, dict[str, str]]:
    """Every partition's settings (MaxTime, GraceTime, PreemptMode, TotalNodes, ...) by its name."""
    records = [_fields(line) for line in run_slurm("scontrol", "show", "partition", "-o").splitlines()]
    return {record["PartitionName"]: record for record in records if "PartitionName" in record}


def query_job(job_id: str) -> dict[str, str] | None:
    """All that the controller knows about a job (JobState, Restarts, EndTime, ...); None when it is gone."""
    try:
        return _fields(run_slurm("scontrol", "show", "job", "-o", job_id).splitlines()[0])
    except SlurmError as error:
        if "Invalid job id" in str(error):
            return None
        raise


def query_queue(job_ids: Sequence[str]) -> dict[str, JobState]:
    """What `squeue` knows of jobs, by id, in one query; the controller forgets a job minutes after its end.

    Args:
        job_ids: `123`, or `123_4` for an element of an array.
    """
    if not job_ids:
        return {}
    return _listed(run_slurm("squeue", "--me", "-h", "-r", "--states=all", "-o", "%i|%T|%r|%N"), job_ids)


def query_accounting(job_ids: Sequence[str]) -> dict[str, JobState]:
    """What `sacct` remembers of jobs that the controller has forgotten, by id, in one query.

    Its word on jobs that wait or run is not taken: an element of an array that is cancelled while it waits
    is not reported to the accounting, which lists it as waiting for as long as the array lasts.
    """
    # Asked for an element, sacct may know nothing; asked for its array, it lists it.
    whole = ",".join(dict.fromkeys(job_id.partition("_")[0] for job_id in job_ids))
    out = run_slurm("sacct", "-n", "-P", "-X", "-j", whole, "-o", "JobID,State,Reason,NodeList")
    return {job_id: state for job_id, state in _listed(out, job_ids).items() if not state.live}


def _listed(out: str, job_ids: Sequence[str]) -> dict[str, JobState]:
    """The lines id|state|reason|nodes of those of `job_ids` that are among them."""
    states: dict[str, JobState] = {}
    for line in out.splitlines():
        listed, state, reason, nodes = line.split("|", 3)
        told = "" if reason == "None" else reason
        for job_id in _named(listed, job_ids):
            states[job_id] = JobState(job_id, state.split()[0], told, nodes)
    return states


def parse_time_limit(limit: str) -> int | None:
    """A Slurm time (`1-02:00:00`, `30:00`, `90`: minutes) in seconds; None where there is no limit."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", limit)
    if found is None:
        return None
    days, first, second, third = (int(group) if group else 0 for group in found.groups())
    if found.group(1) or found.group(4):  # D-HH[:MM[:SS]] or HH:MM:SS
        return ((days * 24 + first) * 60 + second) * 60 + third
    return first * 60 + second


def sends_user_signal(settings: Mapping[str, str]) -> bool:
    """Whether preemption sends the job's own signal; the setting moved between Slurm releases."""
    return "preempt_send_user_signal" in settings.get("SlurmctldParameters", "") or (
        "send_user_signal" in settings.get("PreemptParameters", "")
    )


def _named(listed: str, job_ids: Sequence[str]) -> list[str]:
    """Those of `job_ids` that a listed id stands for: `123_4` is one of `123_[0-3,4%2]`, which wait."""
    array = re.fullmatch(r"(\d+)_\[([\d,-]+)(?:%\d+)?\]", listed)
    if array is None:
        return [listed] if listed in job_ids else []
    spans = [span.partition("-") for span in array[2].split(",")]
    ranges = [(int(first), int(last or first)) for first, _, last in spans if first]
    found: list[str] = []
    for job_id in job_ids:
        parent, _, element = job_id.partition("_")
        if parent == array[1] and element.isdigit():
            found += [job_id for low, high in ranges if low <= int(element) <= high]
    return found


def _fields(line: str) -> dict[str, str]:
    """`Key=value` pairs of a `scontrol -o` line; a value reaches to the next key."""
    found = list(_FIELD.finditer(line))
    ends = [match.start() for match in found[1:]] + [len(line)]
    return {match.group(1): line[match.end() : end].strip() for match, end in zip(found, ends, strict=True)}
