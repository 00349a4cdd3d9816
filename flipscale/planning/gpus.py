"""The GPUs that a plan knows: memory, peaks, and the share of the peak that CLIP training reaches."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from flipscale.errors import UserError
from flipscale.formatting import format_value


@dataclass(frozen=True)
class Gpu:
    """A GPU by its vendor's data sheet."""

    name: str
    """The name for `--gpu` and for a site file."""
    memory: int
    """Bytes that a process sees, which are slightly fewer than the name says."""
    peak_flops: float
    """FLOP/s of dense bf16 matrix products. (The larger figures of the sheets are for sparse ones.)"""
    fp32_flops: float
    """FLOP/s of fp32 outside of the tensor cores, in which the loss is computed."""
    bandwidth: float
    """Bytes/s of device memory."""
    mfu: float
    """The default for `--mfu`: the share of `peak_flops` that published CLIP training reaches on one node."""


# Memory, peaks and bandwidth: NVIDIA's data sheets of the A100, the H100 (SXM5), the H200 (SXM) and the
# GH200. There is no V100: it lacks bf16.
#
# MFU: three forwards of the model per sample over the peak. a100-80gb and h100-80gb: NeMo's CLIP g/14 on one
# node of 8, 559 and 935 samples/s (NVIDIA's NeMo Framework User Guide, CLIP, Performance). a100-40gb:
# OpenCLIP's L/14 on 400 GPUs, 105 samples/s per GPU with recomputation (LAION, scaling-laws-openclip).
# gh200-96gb: CLAP on one node of 4, 624 samples/s per GPU (LAION, open-clap-scaling). For the H200 nothing is
# published: it counts as an H100.
GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("a100-40gb", 39 * 2**30, 312e12, 19.5e12, 1.555e12, 0.18),
        Gpu("a100-80gb", 78 * 2**30, 312e12, 19.5e12, 2.039e12, 0.39),
        Gpu("h100-80gb", 78 * 2**30, 989.4e12, 67e12, 3.35e12, 0.21),
        Gpu("h200-141gb", 139 * 2**30, 989.4e12, 67e12, 4.8e12, 0.21),
        Gpu("gh200-96gb", 94 * 2**30, 989.4e12, 67e12, 4.0e12, 0.21),
    )
}
DEFAULT_GPU = "h100-80gb"

# Parts of the names that CUDA gives to devices. An H100 with PCIe or NVL has another peak and is not known.
_DEVICES = {
    "A100-SXM4-40GB": "a100-40gb",
    "A100-PCIE-40GB": "a100-40gb",
    "A100-SXM4-80GB": "a100-80gb",
    "A100 80GB PCIE": "a100-80gb",
    "H100 80GB HBM3": "h100-80gb",
    "GH200": "gh200-96gb",
    "H200": "h200-141gb",
}


def find_gpu(name: str) -> Gpu:
    """Return the GPU of a name, in upper or lower case.

    Raises:
        UserError: If the table has no such GPU; the message names the nearest ones.
    """
    gpu = GPUS.get(name.lower())
    if gpu is None:
        nearest = difflib.get_close_matches(name.lower(), GPUS, n=2, cutoff=0.3)
        meant = f"did you mean {' or '.join(nearest)}? All: " if nearest else "it has "
        raise UserError(f"there is no GPU {format_value(name)} in the table; {meant}{', '.join(GPUS)}")
    return gpu


def gpu_of_device(name: str) -> Gpu | None:
    """Return the GPU of a device's name, such as "NVIDIA H100 80GB HBM3"; None if the table lacks it."""
    for part, gpu in _DEVICES.items():
        if part in name.upper() and "NVL" not in name.upper():
            return GPUS[gpu]
    return None
