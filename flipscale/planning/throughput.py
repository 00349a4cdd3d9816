"""How long a job takes: its FLOPs over the share of the peak that GPUs reach, or over a measured speed."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass

from flipscale.errors import UserError
from flipscale.models.presets import ModelSpec
from flipscale.planning.flops import training_flops

DEFAULT_MFU = 0.25
"""The share of the peak that model FLOPs reach.

Published CLIP training at this scale in bf16: 15 % (ViT-H/14 on 824 A100, LAION's large-openclip post), 26 %
(ViT-bigG/14 with half of the patches dropped, on 512 A100, LAION's giant-openclip post), about 29 %
(CLIPA-v2's H/14, from its GPU-hours). There is no published figure for a GPU newer than the A100: measure,
and give `--mfu` or `--images-per-second`.
"""
IMAGES_PER_CORE = 450.0
"""The images per second that one core of the loader reads: JPEGs of 512 pixels and 85 kB.

The benchmark in docs/benchmarks/loader_cpu_2026-11-25.md gave 648, and 577 and 454 while the same machine was
busier. This is the lowest, since a plan with too few cores starves a GPU.
"""


@dataclass(frozen=True)
class Gpu:
    """A GPU by its vendor's data sheet."""

    name: str
    """The name for `--gpu` and for a site file."""
    memory: int
    """Bytes that a process sees, which are slightly fewer than the name says."""
    peak_flops: float
    """FLOP/s of dense bf16 matrix products. (The larger figures of the sheets are for sparse ones.)"""


# From NVIDIA's data sheets of the A100, the H100 (SXM5) and the H200 (SXM). There is no V100: it lacks bf16.
GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("a100-40gb", 39 * 2**30, 312e12),
        Gpu("a100-80gb", 78 * 2**30, 312e12),
        Gpu("h100-80gb", 78 * 2**30, 989.4e12),
        Gpu("h200-141gb", 139 * 2**30, 989.4e12),
    )
}
DEFAULT_GPU = "h100-80gb"


@dataclass(frozen=True)
class Speed:
    """The speed of a job: a share of the GPUs' peak, or images per second of the whole job."""

    gpu: Gpu
    """The kind of GPU."""
    gpus: int
    """The number of GPUs."""
    mfu: float = DEFAULT_MFU
    """The share of the GPUs' peak that model FLOPs reach."""
    images_per_second: float | None = None
    """A measured speed over all GPUs, which is taken as it is for every phase."""


def find_gpu(name: str) -> Gpu:
    """Return the GPU of a name, in upper or lower case.

    Raises:
        UserError: If the table has no such GPU; the message names the nearest ones.
    """
    gpu = GPUS.get(name.lower())
    if gpu is None:
        nearest = difflib.get_close_matches(name.lower(), GPUS, n=2, cutoff=0.3) or list(GPUS)
        raise UserError(
            f"there is no GPU {name!r} in the table; did you mean {' or '.join(nearest)}? "
            f"All: {', '.join(GPUS)}"
        )
    return gpu


def make_speed(
    gpu: str, gpus: int, mfu: float | None = None, images_per_second: float | None = None
) -> Speed:
    """Check the options of a plan and return the speed that they describe.

    Args:
        gpu: The name of the GPU.
        gpus: The number of GPUs.
        mfu: Share of the peak; default: `DEFAULT_MFU`.
        images_per_second: A measured speed over all GPUs, instead of `mfu`.

    Raises:
        UserError: If an option is out of range, the GPU is unknown, or both kinds of speed are given.
    """
    if gpus < 1:
        raise UserError(f"--gpus {gpus} is not a number of GPUs; give 1 or more")
    if mfu is not None and images_per_second is not None:
        raise UserError("--mfu and --images-per-second exclude each other; give one of them")
    if mfu is not None and not 0.0 < mfu <= 1.0:
        raise UserError(f"--mfu {mfu} is not a share of the peak; give one above 0 and up to 1, such as 0.4")
    if images_per_second is not None and not 0.0 < images_per_second < math.inf:
        raise UserError(f"--images-per-second {images_per_second} is not a speed; give a number above 0")

    return Speed(find_gpu(gpu), gpus, DEFAULT_MFU if mfu is None else mfu, images_per_second)


def training_seconds(
    speed: Speed,
    spec: ModelSpec,
    samples: int,
    mask_ratio: float,
    text_mask_ratio: float = 0.0,
    *,
    forward_twice: bool = False,
) -> float:
    """Return the seconds of training, without start-up, waiting for data and queues.

    Args:
        speed: The GPUs and their speed.
        spec: The model.
        samples: Image-text pairs to train on.
        mask_ratio: Share of the patches hidden.
        text_mask_ratio: Share of the caption's slots hidden.
        forward_twice: Count GradCache's second forward. Activation checkpointing is not counted: the runs
            that the default MFU comes from have it, too.
    """
    if speed.images_per_second is not None:
        return samples / speed.images_per_second

    flops = training_flops(spec, samples, mask_ratio, text_mask_ratio, forward_twice=forward_twice)
    return flops / (speed.gpu.peak_flops * speed.gpus * speed.mfu)


def count_segments(seconds: float, timeout: int) -> int:
    """Return the starts, at least 1, that `seconds` of training need with a time limit of `timeout` s."""
    return max(1, -(-round(seconds) // timeout))
