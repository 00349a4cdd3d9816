"""Training of the runs by the orchestrator: several at once on this machine, or on Slurm."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from flipscale.config import Site
from flipscale.errors import RunError, StoppedEarly, UserError
from flipscale.orchestration.cluster.local_executor import local_site
from flipscale.orchestration.cluster.submission import living_jobs, logs
from flipscale.orchestration.cluster.submit import require_slurm, submit_run
from flipscale.runs.ledger import read_ledger
from reproduction.machine import cores
from reproduction.planned import PlannedRun

_LOOK_EVERY = 0.3  # seconds


def threads_for(jobs: int) -> int:
    """Return the number of threads per run if `jobs` runs share this machine."""
    return max(1, cores() // jobs)


def train_here(
    runs: Sequence[PlannedRun], jobs: int, site: Site, done: Callable[[PlannedRun], None]
) -> list[UserError | RunError]:
    """Train the runs that are not done yet.

    Args:
        runs: All runs.
        jobs: How many of them are trained at once.
        site: The site, whose environment the runs get.
        done: Called for every run that is done, in the thread of the run.

    Returns:
        The error of each run that failed; it does not keep the others from training.

    Raises:
        StoppedEarly: After Ctrl-C; every run saves and stops.
    """
    threads = str(threads_for(jobs))
    environment = {"OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "passive"} | site.environment
    here = site.model_copy(update={"environment": environment})

    problems: list[UserError | RunError] = []
    with ThreadPoolExecutor(jobs) as pool:
        waiting = {pool.submit(_complete, run, here, done) for run in runs}
        try:
            while waiting:
                ended, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                problems += [problem for future in ended if (problem := _problem(future))]
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            if not isinstance(error, KeyboardInterrupt):
                raise
            for run in runs:
                if not run.done and run.directory.path.is_dir() and living_jobs(run.directory):
                    run.directory.stop_file.touch()
            raise StoppedEarly("stopped on request; run the same command again to resume") from None

    return problems


def _complete(run: PlannedRun, site: Site, done: Callable[[PlannedRun], None]) -> None:
    directory = run.directory
    if not run.done and not living_jobs(directory):
        submit_run(directory, run.job, local_site(site, run.job), cluster="local")
    while living_jobs(directory):
        time.sleep(_LOOK_EVERY)
    if not run.done:
        segments = read_ledger(directory.path)
        reason = f"{segments[-1].reason}: {segments[-1].detail}" if segments else "it never began"
        raise RunError(f"{run.name} ended before its budget was spent ({reason}); see {logs(directory)}")

    done(run)


def _problem(future: Future[None]) -> UserError | RunError | None:
    """Return the error of a user or of a run; any other error is a bug of this program, and is raised."""
    try:
        future.result()
    except (UserError, RunError) as error:
        return error

    return None


def submit_to_slurm(
    runs: Sequence[PlannedRun], jobs: int | None, site: Site
) -> tuple[list[str], list[str], list[UserError | RunError]]:
    """Submit the runs that are neither done nor queued nor running.

    Args:
        runs: All runs.
        jobs: How many runs may be queued or running; None for all.
        site: The site of the cluster.

    Returns:
        The names of the runs submitted now, the names of those that were queued or running before, and the
        errors of those that were refused.

    Raises:
        UserError: If a run is left and there is no Slurm.
    """
    left = [run for run in runs if not run.done]
    if not left:
        return [], [], []

    require_slurm()
    alive = [run for run in left if run.directory.path.is_dir() and living_jobs(run.directory)]
    names = {run.name for run in alive}
    room = len(left) if jobs is None else max(0, jobs - len(alive))
    chosen = [run for run in left if run.name not in names][:room]

    submitted: list[str] = []
    problems: list[UserError | RunError] = []
    for run in chosen:
        try:
            submit_run(run.directory, run.job, site, cluster="slurm")
            submitted.append(run.name)
        except UserError as error:
            problems.append(UserError(f"{run.name}: {error}"))

    return submitted, [run.name for run in alive], problems
