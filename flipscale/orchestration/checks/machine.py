"""Is this machine fit to train on: Python, torch, GPUs, libraries, Slurm, and the limits that bite later."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

import torch
from torch.cuda import nccl

from flipscale.errors import UserError
from flipscale.formatting import format_gib
from flipscale.orchestration.checks.finding import Check
from flipscale.slurm import SlurmError, read_configuration, sends_user_signal

_OPEN_CLIP = "from flipscale.third_party import import_open_clip; import_open_clip()"
_LIBRARIES = {  # by name: its distribution, how it is imported, what it is for
    "deepspeed": ("deepspeed", "import deepspeed", "sharding zero1 to zero3"),
    "fairscale": ("fairscale", "import fairscale", "sharding fairscale_oss and fairscale_fsdp"),
    "open_clip": ("open_clip_torch", _OPEN_CLIP, "`flipscale export` and `flipscale eval`"),
    "submitit": ("submitit", "import submitit", "`flipscale submit`"),
}
_SLURM_COMMANDS = ("sbatch", "srun", "squeue", "scancel", "scontrol")
_IMPORT_SECONDS = 300
_GIB = 2**30


def check_environment(directory: Path) -> list[Check]:
    """Look at the machine that this process runs on, and at `directory`, where runs are to be kept."""
    with ThreadPoolExecutor() as pool:  # the slow imports side by side, each in a process of its own
        libraries = list(pool.map(_library, _LIBRARIES))
    return [
        _python(),
        _torch(),
        *_gpus(),
        *libraries,
        *_slurm(),
        _cores(),
        _memory(),
        _shared_memory(),
        _open_files(),
        _disk(directory),
    ]


def _python() -> Check:
    return Check("python", "ok", f"{sys.version.split()[0]} ({sys.executable})")


def _torch() -> Check:
    major, minor = (int(part) for part in torch.__version__.split(".")[:2])
    if (major, minor) < (2, 8):
        return Check("torch", "problem", torch.__version__, "install torch 2.8 or newer")
    return Check("torch", "ok", f"{torch.__version__}, CUDA {torch.version.cuda or 'not built in'}")


def _gpus() -> list[Check]:
    if not torch.cuda.is_available():
        if torch.version.cuda:
            mend = "run it on a GPU node; there `nvidia-smi` has to list the GPUs, with a driver for CUDA "
            return [Check("GPUs", "warning", "none can be used", mend + torch.version.cuda)]
        return [Check("GPUs", "warning", "none can be used", "this torch is built without CUDA: CPU only")]
    checks: list[Check] = []
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        found = f"{properties.name}, {format_gib(properties.total_memory, 0)}"
        fit = properties.major >= 8
        mend = "" if fit else "it has no bf16 matrix units: train with sharding.precision fp32"
        checks.append(Check(f"GPU {number}", "ok" if fit else "warning", found, mend))
    if torch.distributed.is_nccl_available():
        checks.append(Check("NCCL", "ok", ".".join(map(str, nccl.version()))))
    else:
        mend = "install a torch build with NCCL; without it GPUs cannot train together"
        checks.append(Check("NCCL", "problem", "not built into torch", mend))
    return checks


def _library(name: str) -> Check:
    distribution, statement, use = _LIBRARIES[name]
    try:
        version = metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return Check(name, "problem", "not installed", f"`pip install {distribution}` ({use} needs it)")
    try:
        done = subprocess.run(
            [sys.executable, "-c", statement],
            capture_output=True,
            text=True,
            timeout=_IMPORT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        mend = "a slow file system? install the environment on a faster one"
        return Check(name, "problem", f"{version}: not imported within {_IMPORT_SECONDS} s", mend)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
        mend = f"`pip install --force-reinstall {distribution}`; {use} needs it"
        return Check(name, "problem", f"{version} cannot be imported: {last}", mend)
    return Check(name, "ok", version)


def _slurm() -> list[Check]:
    missing = [command for command in _SLURM_COMMANDS if shutil.which(command) is None]
    if len(missing) == len(_SLURM_COMMANDS):
        return [Check("Slurm", "skipped", "not installed", "`flipscale submit --cluster local` needs none")]
    if missing:
        mend = "load Slurm's module, or ask the administrator for the client package"
        return [Check("Slurm", "problem", f"{', '.join(missing)} not on PATH", mend)]
    try:
        settings = read_configuration()
    except (SlurmError, UserError) as error:
        mend = "check SLURM_CONF and that the controller is up (`scontrol ping`)"
        return [Check("Slurm", "problem", f"it does not answer: {error}", mend)]
    return [Check("Slurm", "ok", settings.get("SLURM_VERSION", "")), *_slurm_settings(settings)]


def _slurm_settings(settings: dict[str, str]) -> list[Check]:
    checks: list[Check] = []
    requeue = settings.get("JobRequeue", "")
    mend = "" if requeue == "1" else "if the cluster refuses --requeue, set the site's restart to chain"
    checks.append(Check("JobRequeue", "warning" if mend else "ok", requeue or "not told", mend))
    preempt = settings.get("PreemptMode", "")
    mend = (
        "" if "REQUEUE" in preempt or preempt == "OFF" else "preempted jobs are not requeued by the cluster"
    )
    checks.append(Check("PreemptMode", "warning" if mend else "ok", preempt or "not told", mend))
    early = sends_user_signal(settings)
    found = "the job's own signal" if early else "SIGTERM"  # both are obeyed
    checks.append(Check("preemption signal", "ok", found))
    checks.append(Check("KillWait", "ok", settings.get("KillWait", "not told")))
    storage = settings.get("AccountingStorageType", "")
    remembers = bool(storage) and not storage.endswith("none") and storage != "(null)"
    mend = (
        "" if remembers else "jobs are forgotten some minutes after their end (MinJobAge); the ledger is not"
    )
    checks.append(Check("accounting", "ok" if remembers else "warning", storage or "none", mend))
    return checks


def _cores() -> Check:
    cores = len(os.sched_getaffinity(0))
    gpus = torch.cuda.device_count()
    if cores < 4 * gpus:
        mend = "ask for more cores a GPU: loader processes decode the images"
        return Check("cores", "warning", f"{cores} for {gpus} GPUs", mend)
    return Check("cores", "ok", str(cores))


def _memory() -> Check:
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    kib = {fields[0].rstrip(":"): int(fields[1]) for fields in lines}
    found = f"{kib['MemAvailable'] / 2**20:.1f} of {kib['MemTotal'] / 2**20:.1f} GiB free"
    if kib["MemAvailable"] * 1024 < 4 * _GIB:
        return Check("memory", "warning", found, "free some, or ask Slurm for more (--mem)")
    return Check("memory", "ok", found)


def _shared_memory() -> Check:
    try:
        total = shutil.disk_usage("/dev/shm").total
    except OSError:
        return Check("/dev/shm", "warning", "not there", "loader processes need it: set data.workers to 0")
    if total < _GIB:
        mend = "loader processes hand batches over in it: mount it larger (containers: --shm-size=8g)"
        return Check("/dev/shm", "warning", f"{total / 2**20:.0f} MiB", mend)
    return Check("/dev/shm", "ok", format_gib(total))


def _open_files() -> Check:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 4096:
        most = "4096" if hard == resource.RLIM_INFINITY or hard >= 4096 else str(hard)
        return Check("open files", "warning", str(soft), f"`ulimit -n {most}` in the site's set-up lines")
    return Check("open files", "ok", str(soft))


def _disk(directory: Path) -> Check:
    try:
        free = shutil.disk_usage(directory).free
    except OSError as error:
        return Check("disk", "problem", f"{directory}: {error.strerror}", "name another --directory")
    found = f"{format_gib(free)} free in {directory}"
    if not os.access(directory, os.W_OK):
        return Check("disk", "problem", f"{directory} cannot be written", "name another --directory")
    if free < 10 * _GIB:
        return Check("disk", "warning", found, "a ViT-H/14 checkpoint takes 12 GB: free some")
    return Check("disk", "ok", found)
