"""The operations per second that a speed means: TFLOP/s of a process, and the share of its GPU's peak."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from flipscale.config import Phase
from flipscale.distributed.world import World
from flipscale.models.presets import ModelSpec
from flipscale.planning.flops import training_flops
from flipscale.planning.gpus import Gpu, gpu_of_device


@dataclass(frozen=True)
class Utilisation:
    """What turns the images per second of a run into the operations per second of one process."""

    phases: tuple[Phase, ...]
    specs: tuple[ModelSpec, ...]
    """The shape of the model in each phase."""
    processes: int
    gpu: Gpu | None
    """The GPU of each process; None on a CPU, and if its peak is not known."""

    @classmethod
    def of(cls, phases: Sequence[Phase], specs: Sequence[ModelSpec], world: World) -> Utilisation:
        """Return the utilisation of a run on this machine.

        Args:
            phases: The phases of the job.
            specs: The shape of the model in each of them.
            world: The processes of the run.
        """
        gpu = None
        if world.device.type == "cuda":
            gpu = gpu_of_device(torch.cuda.get_device_name(world.device))
        return cls(tuple(phases), tuple(specs), world.size, gpu)

    def fields(self, phase: int, images_per_second: float, caption_tokens: float) -> dict[str, float]:
        """Return the fields of a line of metrics: `tflops` of a process, and `mfu` if its GPU is known.

        A sample costs three forward passes of what is neither masked nor behind the end of its caption. What
        a step computes twice, because of recomputation or micro-batches, counts once, as usual for an MFU.

        Args:
            phase: The number of the phase.
            images_per_second: The speed of all processes together.
            caption_tokens: Mean tokens up to the end of a caption.
        """
        ratios = (self.phases[phase].mask_ratio, self.phases[phase].text_mask_ratio)
        of_sample = training_flops(self.specs[phase], 1, *ratios, caption_tokens=caption_tokens)
        flops = of_sample * images_per_second / self.processes
        fields = {"tflops": flops / 1e12}
        if self.gpu is not None:
            fields["mfu"] = flops / self.gpu.peak_flops
        return fields
