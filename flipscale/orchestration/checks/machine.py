"""The checks of a machine: Python, torch, GPUs, libraries, Slurm, and the limits that matter later."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import NamedTuple, Protocol, cast

import torch
from torch.cuda import nccl

from flipscale.errors import UserError
from flipscale.formatting import format_gib
from flipscale.orchestration.checks.finding import Finding
from flipscale.sharding.compilation import check_compiler
from flipscale.slurm import SlurmError, read_configuration, sends_user_signal


class _Library(NamedTuple):
    """A library that flipscale needs.

    Attributes:
        distribution: Its name for pip.
        statement: The Python statement that imports it.
        use: What needs it.
    """

    distribution: str
    statement: str
    use: str


class _GpuProperties(Protocol):
    """What the checks read of torch's properties of a GPU; `total_memory` is in bytes."""

    name: str
    major: int
    total_memory: int


_OPEN_CLIP = "from flipscale.third_party import import_open_clip; import_open_clip()"
_LIBRARIES = {
    "deepspeed": _Library("deepspeed", "import deepspeed", "sharding zero1 to zero3"),
    "fairscale": _Library("fairscale", "import fairscale", "sharding fairscale_oss and fairscale_fsdp"),
    "open_clip": _Library("open_clip_torch", _OPEN_CLIP, "`flipscale export` and `flipscale eval`"),
    "submitit": _Library("submitit", "import submitit", "`flipscale submit`"),
}
_SLURM_COMMANDS = ("sbatch", "srun", "squeue", "scancel", "scontrol")
_IMPORT_SECONDS = 300
_OLDEST_TORCH = (2, 9)
_OPEN_FILES = 4096  # that a process should be able to have; three per process of the run are connections
_GIB = 2**30


def check_environment(directory: Path) -> list[Finding]:
    """Check the machine that this process runs on.

    Args:
        directory: The directory for runs, whose disk is checked.
    """
    # The imports are slow: each is a process of its own, and they run at the same time.
    with ThreadPoolExecutor() as pool:
        libraries = list(pool.map(_library, _LIBRARIES))

    return [
        _python(),
        _torch(),
        *_gpus(),
        *libraries,
        _compiler(),
        *_slurm(),
        _cores(),
        _memory(),
        _shared_memory(),
        _open_files(),
        _disk(directory),
    ]


def _python() -> Finding:
    return Finding("python", "ok", f"{sys.version.split()[0]} ({sys.executable})")


def _torch() -> Finding:
    major, minor = (int(part) for part in torch.__version__.split(".")[:2])
    if (major, minor) < _OLDEST_TORCH:
        oldest = ".".join(map(str, _OLDEST_TORCH))
        return Finding("torch", "error", torch.__version__, f"install torch {oldest} or newer")
    return Finding("torch", "ok", f"{torch.__version__}, CUDA {torch.version.cuda or 'not built in'}")


def _gpus() -> list[Finding]:
    if not torch.cuda.is_available():
        if torch.version.cuda:
            fix = (
                "run it on a GPU node; there `nvidia-smi` has to list the GPUs, with a driver for CUDA "
                f"{torch.version.cuda}"
            )
            return [Finding("GPUs", "warning", "none can be used", fix)]
        return [Finding("GPUs", "warning", "none can be used", "this torch is built without CUDA: CPU only")]

    gpus = [_gpu(number) for number in range(torch.cuda.device_count())]
    return [*gpus, _nccl()]


def _gpu(number: int) -> Finding:
    # torch does not type the properties.
    properties = cast("_GpuProperties", torch.cuda.get_device_properties(number))

    text = f"{properties.name}, {format_gib(properties.total_memory, 0)}"
    if properties.major < 8:
        fix = "it has no bf16 matrix units: train with sharding.precision fp32"
        return Finding(f"GPU {number}", "warning", text, fix)
    return Finding(f"GPU {number}", "ok", text)


def _nccl() -> Finding:
    if not torch.distributed.is_nccl_available():
        fix = "install a torch build with NCCL; without it GPUs cannot train together"
        return Finding("NCCL", "error", "not built into torch", fix)
    return Finding("NCCL", "ok", ".".join(map(str, nccl.version())))


def _library(name: str) -> Finding:
    distribution, statement, use = _LIBRARIES[name]
    try:
        version = metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return Finding(name, "error", "not installed", f"`pip install {distribution}` ({use} needs it)")

    try:
        done = subprocess.run(
            [sys.executable, "-c", statement],
            capture_output=True,
            text=True,
            timeout=_IMPORT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        fix = "a slow file system? install the environment on a faster one"
        return Finding(name, "error", f"{version}: not imported within {_IMPORT_SECONDS} s", fix)

    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
        fix = f"`pip install --force-reinstall {distribution}`; {use} needs it"
        return Finding(name, "error", f"{version} cannot be imported: {last}", fix)
    return Finding(name, "ok", version)


def _compiler() -> Finding:
    try:
        check_compiler("cuda" if torch.version.cuda else "cpu")
    except UserError as error:
        return Finding("compiler", "warning", "none", str(error))
    return Finding("compiler", "ok", "sharding.compile can be used")


def _slurm() -> list[Finding]:
    missing = [command for command in _SLURM_COMMANDS if shutil.which(command) is None]
    if len(missing) == len(_SLURM_COMMANDS):
        fix = "`flipscale submit --cluster local` needs none"
        return [Finding("Slurm", "skipped", "not installed", fix)]
    if missing:
        fix = "load Slurm's module, or ask the administrator for the client package"
        return [Finding("Slurm", "error", f"{', '.join(missing)} not on PATH", fix)]

    try:
        settings = read_configuration()
    except (SlurmError, UserError) as error:
        fix = "check SLURM_CONF and that the controller is up (`scontrol ping`)"
        return [Finding("Slurm", "error", f"it does not answer: {error}", fix)]
    return [Finding("Slurm", "ok", settings.get("SLURM_VERSION", "")), *_slurm_settings(settings)]


def _slurm_settings(settings: dict[str, str]) -> list[Finding]:
    requeue = settings.get("JobRequeue", "")
    preempt = settings.get("PreemptMode", "")
    storage = settings.get("AccountingStorageType", "")
    has_accounting = bool(storage) and not storage.endswith("none") and storage != "(null)"

    return [
        _setting(
            "JobRequeue",
            requeue or "not reported",
            good=requeue == "1",
            fix="if the cluster refuses --requeue, set the site's restart to chain",
        ),
        _setting(
            "PreemptMode",
            preempt or "not reported",
            good="REQUEUE" in preempt or preempt == "OFF",
            fix="preempted jobs are not requeued by the cluster",
        ),
        # Training obeys both signals.
        Finding(
            "preemption signal", "ok", "the job's own signal" if sends_user_signal(settings) else "SIGTERM"
        ),
        Finding("KillWait", "ok", settings.get("KillWait", "not reported")),
        _setting(
            "accounting",
            storage or "none",
            good=has_accounting,
            fix="jobs are forgotten some minutes after their end (MinJobAge); the ledger is not",
        ),
    ]


def _setting(name: str, value: str, *, good: bool, fix: str) -> Finding:
    return Finding(name, "ok", value) if good else Finding(name, "warning", value, fix)


def _cores() -> Finding:
    cores = len(os.sched_getaffinity(0))
    gpus = torch.cuda.device_count()
    if cores < 4 * gpus:
        fix = "ask for more cores per GPU: loader processes decode the images"
        return Finding("cores", "warning", f"{cores} for {gpus} GPUs", fix)
    return Finding("cores", "ok", str(cores))


def _memory() -> Finding:
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    kib = {fields[0].rstrip(":"): int(fields[1]) for fields in lines}

    text = f"{kib['MemAvailable'] / 2**20:.1f} of {kib['MemTotal'] / 2**20:.1f} GiB free"
    if kib["MemAvailable"] * 1024 < 4 * _GIB:
        return Finding("memory", "warning", text, "free some, or ask Slurm for more (--mem)")
    return Finding("memory", "ok", text)


def _shared_memory() -> Finding:
    try:
        total = shutil.disk_usage("/dev/shm").total
    except OSError:
        fix = "loader processes need it: set data.workers to 0"
        return Finding("/dev/shm", "warning", "not there", fix)

    if total < _GIB:
        fix = "loader processes hand batches over in it: mount it larger (containers: --shm-size=8g)"
        return Finding("/dev/shm", "warning", f"{total / 2**20:.0f} MiB", fix)
    return Finding("/dev/shm", "ok", format_gib(total))


def _open_files() -> Finding:
    # Each process of a run raises its soft limit to the hard one.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        return Finding("open files", "ok", "no limit")
    if hard < _OPEN_FILES:
        fix = f"have the administrator raise the hard limit (`ulimit -Hn`) to {_OPEN_FILES}"
        return Finding("open files", "warning", f"at most {hard}", fix)
    return Finding("open files", "ok", f"at most {hard}")


def _disk(directory: Path) -> Finding:
    try:
        free = shutil.disk_usage(directory).free
    except OSError as error:
        return Finding("disk", "error", f"{directory}: {error.strerror}", "name another --directory")

    text = f"{format_gib(free)} free in {directory}"
    if not os.access(directory, os.W_OK):
        return Finding("disk", "error", f"{directory} cannot be written", "name another --directory")
    if free < 10 * _GIB:
        return Finding("disk", "warning", text, "a ViT-H/14 checkpoint takes 12 GB: free some")
    return Finding("disk", "ok", text)
