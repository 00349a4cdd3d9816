"""What can be known before a job waits in a queue: each check is one function that answers in a sentence."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from flipscale.budget import check_world_size
from flipscale.config import Job, Site
from flipscale.data.shards.index import Index, expand_shards, is_current, load_index
from flipscale.data.shards.storage import DataReadError, Storage, is_command, is_remote
from flipscale.data.text.tokenizer import load_tokenizer
from flipscale.errors import UserError
from flipscale.formatting import format_gib
from flipscale.orchestration.cluster.allocation import Allocation, allocation
from flipscale.orchestration.cluster.batch_script import node_check
from flipscale.planning.fit import advise, fits
from flipscale.planning.memory import estimate_memory
from flipscale.planning.plan import model_shape, state_bytes
from flipscale.planning.throughput import find_gpu
from flipscale.runs.directory import RunDirectory, committed_samples
from flipscale.sharding.limits import check_sharding
from flipscale.slurm import SlurmError, run_slurm

_SHARDS_LOOKED_AT = 64  # of a set that may have hundreds of thousands


@dataclass(frozen=True)
class Finding:
    check: str
    level: Literal["ok", "warning", "error"]
    text: str


@dataclass(frozen=True)
class Candidate:
    """A job about to be submitted."""

    run: RunDirectory
    job: Job
    site: Site
    asked: Allocation


class Warned(Exception):
    """A check's sentence about something that may be meant."""


def preflight(run: RunDirectory, job: Job, site: Site) -> list[Finding]:
    """Check what this machine can see of a job; writes nothing, asks no cluster."""
    candidate = Candidate(run, job, site, allocation(job, site))
    return [
        finding(name, lambda check=check: check(candidate))
        for name, check in (
            ("python", _signals_can_wait),
            ("run directory", _run_directory),
            ("processes", _processes),
            ("data", _data),
            ("tokenizer", _tokenizer),
            ("weights", _weights),
            ("disk", _disk),
            ("memory", _memory),
        )
    ]


def finding(name: str, check: Callable[[], str]) -> Finding:
    """Run one check: it returns a sentence, or raises Warned or UserError with one."""
    try:
        return Finding(name, "ok", check())
    except Warned as warning:
        return Finding(name, "warning", str(warning))
    except UserError as error:
        return Finding(name, "error", str(error))


def refuse_errors(findings: list[Finding]) -> None:
    """Raise UserError with the first error among `findings`, and the number of the others."""
    errors = [found.text for found in findings if found.level == "error"]
    if errors:
        more = f" (and {len(errors) - 1} more; --dry-run shows all)" if len(errors) > 1 else ""
        raise UserError(f"{errors[0]}{more}")


def check_nodes(run: RunDirectory, asked: Allocation, site: Site) -> None:
    """Ask nodes of the site whether they see the place of the run, through a file that is put there.

    Raises UserError where one does not, Warned where no nodes are free to be asked.
    """
    place = _existing_parent(run.path)
    with tempfile.NamedTemporaryFile(dir=place, prefix=".flipscale_token_") as token:
        where = [
            f"--{option}={value}"
            for option in ("partition", "account", "qos", "constraint")
            if (value := getattr(site, option))
        ]
        command = node_check(shlex.quote(token.name), shlex.quote(str(run.path)))
        try:
            run_slurm(
                *("srun", f"--nodes={asked.nodes}", "--ntasks-per-node=1", "--time=1", "--immediate=10"),
                *("--kill-on-bad-exit=0", "--chdir=/", "--quiet", *where, "sh", "-c", command),
            )
        except SlurmError as error:
            told = str(error)
            if "does not see the run directory" in told:
                raise UserError(told[told.index("flipscale: ") + len("flipscale: ") :]) from None
            raise Warned(f"no nodes could be asked whether they see {place}: {told}") from None


def _signals_can_wait(candidate: Candidate) -> str:
    held = ["env", "--block-signal=TERM", "true"]
    if subprocess.run(held, capture_output=True, check=False).returncode:
        raise UserError(
            "`env` here has no --block-signal, by which an early signal waits for the run; install coreutils "
            "8.31 or newer, here and on the nodes"
        )
    return candidate.site.python or "this one, on the nodes too"


def _run_directory(candidate: Candidate) -> str:
    path = candidate.run.path
    place = _existing_parent(path)
    try:
        with tempfile.TemporaryFile(dir=place):  # permissions alone say little of root, quotas or servers
            pass
    except OSError as error:
        raise UserError(
            f"{place} cannot be written ({error.strerror}); set `output` to a directory on a shared file "
            "system"
        ) from None
    kind = _file_system(place)
    if kind in ("tmpfs", "ramfs", "overlay"):
        raise Warned(
            f"{path} lies on {kind}, which other machines seldom see; a job whose nodes do not see it ends "
            "at once (--check-nodes asks them)"
        )
    return f"{path} on {kind}, {'goes on' if candidate.run.job.exists() else 'new'}"


def _processes(candidate: Candidate) -> str:
    asked, job = candidate.asked, candidate.job
    check_world_size(asked.world_size, job.data.lanes)
    check_sharding(job.sharding, asked.world_size, "cuda" if asked.gpus_per_node else "cpu")
    if asked.cpus_per_process is None and asked.nodes * asked.processes_per_node > 1:
        raise Warned(
            f"{asked.world_size} processes; the site {candidate.site.name} names no cores, and by default "
            "Slurm gives a process one: set cores_per_node there"
        )
    cores = f" with {asked.cpus_per_process} cores each" if asked.cpus_per_process else ""
    return f"{asked.nodes} x {asked.processes_per_node}{cores}, {asked.gpus_per_node} GPUs a node"


def _data(candidate: Candidate) -> str:
    source = candidate.job.data
    paths = expand_shards(source.train)
    index = _index(candidate, paths)
    storage = Storage(source.allow_pipe)
    try:
        if index is not None:
            replace(index, shards=tuple(_sample(index.shards))).verify(storage)
            return f"{index.samples} samples in {len(index.shards)} shards, index in {index.directory}"
        for path in _sample(paths):
            _look_at(path, storage, source.train)
    except DataReadError as error:
        raise Warned(f"{error}; the nodes may reach what this machine does not") from None
    if len(paths) > _SHARDS_LOOKED_AT:
        raise Warned(
            f"{len(paths)} shards without an index, which the first segment would build while all processes "
            "wait; build it before with `flipscale data index` and set data.index"
        )
    return f"{len(paths)} shards; the first segment indexes them"


def _index(candidate: Candidate, paths: list[str]) -> Index | None:
    """The index that the run will use, or None where its first segment has to build one."""
    source = candidate.job.data
    if source.index is not None:
        index = load_index(Path(source.index))
        index.check_paths(paths, source.train)
        return index
    built = candidate.run.path / "index"
    if not is_current(built):
        return None
    index = load_index(built)
    return index if [shard.path for shard in index.shards] == paths else None


def _look_at(path: str, storage: Storage, pattern: str) -> None:
    if is_command(path):
        return  # it would have to run
    try:
        readable = storage.status(path).bytes > 0 if is_remote(path) else os.access(path, os.R_OK)
    except FileNotFoundError:
        readable = False
    if not readable:
        raise UserError(f"the shard {path} cannot be read here; check data.train = {pattern}")


def _tokenizer(candidate: Candidate) -> str:
    source = candidate.job.data.tokenizer
    vocab = source.vocab
    if vocab and not (vocab.startswith(("/", ".")) or vocab.endswith(".txt") or Path(vocab).exists()):
        return f"{source.kind}, {vocab} from the hub: the nodes need it in their cache, or a network"
    tokenizer = load_tokenizer(source.kind, vocab, source.context_length)
    return f"{source.kind}, {tokenizer.vocab_size} tokens"


def _weights(candidate: Candidate) -> str:
    weights = candidate.job.model.weights
    if weights is None:
        return "initial ones"
    if committed_samples(candidate.run):
        return f"{weights}, read when the run began"
    from flipscale.interop.load_model import is_model  # slow to import, and few jobs have weights

    if not is_model(Path(weights)):
        raise UserError(
            f"model.weights {weights} is neither a run, nor a checkpoint, nor an OpenCLIP directory; "
            "correct the path"
        )
    return weights


def _disk(candidate: Candidate) -> str:
    one = state_bytes(candidate.job)
    there = len(list(candidate.run.checkpoints.glob("samples_*/manifest.json")))
    # The newest is written before the oldest goes.
    wanted = max(1, candidate.job.checkpoint.keep_last + 1 - there)
    place = _existing_parent(candidate.run.path)
    free = shutil.disk_usage(place).free
    if free < one:
        raise UserError(
            f"{place} has no space for one checkpoint: {format_gib(free)} are free and one takes "
            f"{format_gib(one)}; free some, or set `output` elsewhere"
        )
    text = f"{format_gib(free, 0)} free; {wanted} more checkpoints of {format_gib(one, 2)}"
    if free < wanted * one:
        raise Warned(f"{text} will be kept (checkpoint.keep_last), and do not fit")
    return text


def _memory(candidate: Candidate) -> str:
    job, site, world_size = candidate.job, candidate.site, candidate.asked.world_size
    there = find_gpu(site.gpu).memory if site.gpu and site.gpu_memory is None else site.gpu_memory
    spec = model_shape(job)
    needed = max(phase.total for phase in estimate_memory(job, spec, world_size))
    text = f"{format_gib(needed)} a process by the estimate of `flipscale plan`"
    if there is None or not candidate.asked.gpus_per_node:
        return f"{text}; set gpu or gpu_memory in the site file to have it compared"
    if fits(needed, there):
        return f"{text}, of {format_gib(there, 0)}"
    advice = advise(job, spec, world_size, there)
    mend = f"try {' '.join(advice)}" if advice else "take more or larger GPUs"
    raise Warned(f"{text}, which does not fit a GPU of {format_gib(there, 0)}; {mend}")


def _sample(items: list[str] | tuple) -> list:
    """A few items, evenly spread, the first and the last among them."""
    last = len(items) - 1
    places = {round(number * last / (_SHARDS_LOOKED_AT - 1)) for number in range(_SHARDS_LOOKED_AT)}
    return [items[place] for place in sorted(places)]


def _existing_parent(path: Path) -> Path:
    return next(place for place in (path, *path.parents) if place.exists())


def _file_system(path: Path) -> str:
    """The type of the file system that `path` lies on, such as nfs4, lustre or ext4."""
    best, kind = "", "an unknown file system"
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mounted, this_kind, *_ = line.split()
        mounted = mounted.replace("\\040", " ")
        if path.is_relative_to(mounted) and len(mounted) >= len(best):
            best, kind = mounted, this_kind
    return kind
