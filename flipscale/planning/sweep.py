"""A job on other numbers of GPUs, with other strategies and recomputation: what is cheapest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flipscale.config import Job, Sharding
from flipscale.errors import UserError
from flipscale.models.of_job import phase_specs
from flipscale.planning.fit import as_yaml, fits, remedy
from flipscale.planning.memory import estimate_memory
from flipscale.planning.phase_time import phase_step
from flipscale.planning.plan import model_shape
from flipscale.planning.step_time import Bound, StepTime
from flipscale.planning.throughput import Speed
from flipscale.sharding.limits import check_sharding

RECOMPUTATION = ("none", "selective", "full")
_TIMES = (0.25, 0.5, 1, 2, 4)
"""The numbers of GPUs to try, as multiples of the job's."""


@dataclass(frozen=True)
class Candidate:
    """A job as it could be run."""

    gpus: int
    nodes: int
    overrides: tuple[str, ...]
    """Keys of the job file with their values."""
    strategy: str
    reshard_after_forward: bool
    activation_checkpointing: str
    micro_batch: int | None
    memory_bytes: int
    """Bytes that one process needs in the phase that needs most."""
    fits: bool
    bound: Bound
    """What bounds the phase that takes longest."""
    exposed: float
    """The share of all steps in which the GPUs wait for the network."""
    seconds: float
    """Time of training only."""
    gpu_hours: float
    cost: float | None
    """The price of all GPU-hours; None without a price of one."""
    cheapest: bool = False
    """Whether no other candidate that fits takes fewer GPU-hours."""


def sweep_job(
    job: Job, on: Speed, images_per_core: float, price_per_gpu_hour: float | None = None
) -> tuple[Candidate, ...]:
    """Return a job as it could be run, the cheapest first, with what does not fit behind what does.

    Per number of GPUs, strategy and recomputation there is one candidate: the one with the largest
    micro-batch that fits, since a smaller one is never faster.

    Args:
        job: The job, whose sharding is replaced except for its precision.
        on: The machine; its number of GPUs is tried along with a quarter, half, twice and four times of it.
        images_per_core: Images per second that one core of the loader reads.
        price_per_gpu_hour: The price of a GPU for an hour.

    Raises:
        UserError: If the speed is measured, or if nothing fits.
    """
    if on.images_per_second is not None:
        raise UserError("--sweep computes the speed of each candidate; leave out --images-per-second")

    found = [
        _largest(job, sharding, machine, images_per_core, price_per_gpu_hour)
        for machine in _machines(job, on)
        for sharding in _shardings(job.sharding, machine)
    ]
    found.sort(key=lambda one: (not one.fits, one.gpu_hours, one.seconds))
    if not found or not found[0].fits:
        raise UserError(remedy(job, model_shape(job), on.gpus, on.gpu))
    return (replace(found[0], cheapest=True), *found[1:])


def _machines(job: Job, on: Speed) -> Iterator[Speed]:
    """Yield the machine with each number of GPUs that fills its nodes and divides the lanes."""
    for times in _TIMES:
        gpus = int(on.gpus * times)
        fills = gpus <= on.gpus_per_node or gpus % on.gpus_per_node == 0
        if gpus == on.gpus * times and fills and job.data.lanes % gpus == 0:
            yield replace(on, gpus=gpus)


def _shardings(own: Sharding, on: Speed) -> Iterator[Sharding]:
    """Yield every sharding block that can run on a machine."""
    kinds: list[dict[str, Any]] = [
        {"strategy": "ddp"},
        {"strategy": "fsdp"},
        {"strategy": "fsdp", "reshard_after_forward": False},
        *({"strategy": f"zero{stage}"} for stage in (1, 2, 3)),
        {"strategy": "fairscale_oss"},
        {"strategy": "fairscale_fsdp"},
    ]
    if on.gpus > on.gpus_per_node:
        hsdp = {"strategy": "hsdp", "shard_size": on.gpus_per_node}
        kinds[3:3] = [hsdp, {**hsdp, "reshard_after_forward": False}]

    common = {"precision": own.precision, "compile": own.compile}
    for kind in kinds:
        for mode in RECOMPUTATION:
            sharding = Sharding.model_validate({**common, **kind, "activation_checkpointing": mode})
            try:
                check_sharding(sharding, on.gpus, "cuda")
            except UserError:
                continue
            yield sharding


def _largest(
    job: Job, sharding: Sharding, on: Speed, images_per_core: float, price: float | None
) -> Candidate:
    """Return the candidate with the largest micro-batch that fits, or the smallest if none does."""
    pairs = -(-max(phase.batch_size for phase in job.phases) // on.gpus)
    spec = model_shape(job)
    micro_batch: int | None = None
    while True:
        tried = sharding.model_copy(update={"micro_batch": micro_batch})
        changed = job.model_copy(update={"sharding": tried})
        memory = max(phase.total for phase in estimate_memory(changed, spec, on.gpus))
        if fits(memory, on.gpu.memory) or micro_batch == 1 or pairs == 1:
            return _candidate(changed, on, memory, images_per_core, price)
        micro_batch = (micro_batch or pairs) // 2


def _candidate(job: Job, on: Speed, memory: int, images_per_core: float, price: float | None) -> Candidate:
    """Compute the time of a candidate, from the job with its sharding."""
    shapes = phase_specs(model_shape(job), job)
    steps = [
        (phase.samples / phase.batch_size, step)
        for phase, shape in zip(job.phases, shapes, strict=True)
        if (step := phase_step(job, phase, shape, on, images_per_core)) is not None
    ]
    seconds = sum(count * step.total for count, step in steps)
    gpu_hours = seconds * on.gpus / 3600

    sharding = job.sharding
    return Candidate(
        gpus=on.gpus,
        nodes=-(-on.gpus // on.gpus_per_node),
        overrides=_overrides(sharding, on),
        strategy=sharding.strategy,
        reshard_after_forward=sharding.reshard_after_forward,
        activation_checkpointing=sharding.activation_checkpointing,
        micro_batch=sharding.micro_batch,
        memory_bytes=memory,
        fits=fits(memory, on.gpu.memory),
        bound=_longest(steps).bound,
        exposed=sum(count * step.exposed for count, step in steps) / seconds,
        seconds=seconds,
        gpu_hours=gpu_hours,
        cost=None if price is None else gpu_hours * price,
    )


def _longest(steps: Sequence[tuple[float, StepTime]]) -> StepTime:
    return max(steps, key=lambda one: one[0] * one[1].total)[1]


def _overrides(sharding: Sharding, on: Speed) -> tuple[str, ...]:
    """Return the changes to the job file that make a candidate of it."""
    # The size of shards also if there is none: the job may have one, which only hsdp takes.
    keys = ["strategy", "shard_size", "activation_checkpointing", "micro_batch"]
    if sharding.strategy in ("fsdp", "hsdp", "fairscale_fsdp"):
        keys.append("reshard_after_forward")

    nodes = f"cluster.nodes={-(-on.gpus // on.gpus_per_node)}"
    per_node = f"cluster.gpus_per_node={min(on.gpus, on.gpus_per_node)}"
    return nodes, per_node, *(f"sharding.{key}={as_yaml(getattr(sharding, key))}" for key in keys)
