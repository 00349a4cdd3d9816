"""DeepSpeed's ZeRO: moments, then also gradients, then also weights in one share per process.

Tested with DeepSpeed 0.19. Its public calls neither return the gradient's norm before the update nor create
moments ahead of it. This file therefore uses private parts of its optimizer; comments say which.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from flipscale.config import Optimizer, Sharding
from flipscale.distributed.world import World
from flipscale.models.flip import FLIP, Features
from flipscale.models.inputs import Inputs
from flipscale.sharding.optimizer import (
    build_optimizer,
    optimizer_kind,
    set_lr,
    set_updates,
    skip_unless,
    updates,
)
from flipscale.sharding.wrapping import (
    Autocast,
    ensure_process_group,
    ignore_old_names,
    load_whole,
    own_share,
)

_BUCKET = 100_000_000
"""Elements that zero1 and zero2 reduce at once on GPUs. With DeepSpeed's 500,000,000, most models are one
bucket, which is full only when the backward ends; two buffers of this size are also smaller."""


class ZeroModel:
    """The strategies `zero1` to `zero3`, which shard the moments, then also gradients, then also weights.

    The engine runs in fp32, and bf16 comes from autocast, as in `ddp`. An engine in bf16 would round the
    weights of the norms and the logit scale to 8 bits.

    Args:
        model: The model with its weights.
        sharding: The `sharding` block of the job.
        optimizer: The `optimizer` block of the job.
        world: The processes of the run.
    """

    def __init__(self, model: FLIP, sharding: Sharding, optimizer: Optimizer, world: World) -> None:
        ensure_process_group(world)
        self._world = world
        self._stage = int(sharding.strategy.removeprefix("zero"))
        model = model.to(world.device)
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._shapes = {name: p.shape for name, p in self._parameters.items()}  # zero3 empties the parameters

        self._moments = optimizer_kind(optimizer).moments
        self._optimizer = build_optimizer(self._parameters.items(), optimizer)
        self._optimizer.state.clear()  # of whole parameters; the engine's optimizer works on flat shares

        self._deepspeed = _quiet_deepspeed(world)
        self._engine: Any = self._deepspeed.initialize(
            model=Autocast(model, world.device, enabled=sharding.precision == "bf16"),
            optimizer=self._optimizer,
            config=_engine_config(self._stage, sharding.offload_optimizer, world.device),
            dist_init_required=False,
        )[0]
        self._zero: Any = self._engine.optimizer
        self._create_moments()

    def forward(self, inputs: Inputs, *, reconstruct: bool = False) -> Features:
        """Run FLIP.forward in the precision of the job."""
        return self._engine(inputs, reconstruct=reconstruct)

    @contextmanager
    def micro_step(self, last: bool) -> Generator[None]:
        """Reduce gradients in the last micro-batch; zero2 and zero3, which keep a share only, in each."""
        self._engine.set_gradient_accumulation_boundary(last)
        yield

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of the 0-d loss."""
        self._engine.backward(loss, scale_wrt_gas=False)

    def gradient_norm(self, max_norm: float | None) -> Tensor:
        """Return the norm of the whole gradient, and clip it to `max_norm` if there is one."""
        gradients = self._gradient_shares()

        # In fp64, since on a CPU the norm of one long fp32 vector loses two digits.
        norms = [torch.linalg.vector_norm(gradient, dtype=torch.float64) for gradient in gradients]
        squared = torch.stack(norms).to(self._world.device).square().sum()
        dist.all_reduce(squared)
        norm = squared.sqrt().float()

        if max_norm is not None:
            # The same factor as torch.nn.utils.clip_grads_with_norm_.
            factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
            for gradient in gradients:
                gradient.mul_(factor.to(gradient.device))
        return norm

    def update(self, lr: float, finite: Tensor) -> None:
        """Apply the gradients unless `finite` (0-d bool) is false, and clear them.

        With zero3 and with offloading the host waits here. The engine computes the norm again, and drops the
        gradients before the optimizer step if it is not finite.
        """
        set_lr(self._optimizer, lr)
        skip_unless(self._optimizer, finite)
        self._engine.step()

    def reset_optimizer(self) -> None:
        """Set the moments to zero and restart the bias correction."""
        for moments in self._optimizer.state.values():
            for tensor in moments.values():
                tensor.zero_()

    def updates(self) -> int:
        """Return the number of updates since the optimizer was last fresh."""
        return updates(self._optimizer)

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the whole state in the first process, and nothing in the others."""
        read_weight = self._deepspeed.utils.safe_get_full_fp32_param
        read_moment = self._deepspeed.utils.safe_get_full_optimizer_state
        for name, parameter in self._parameters.items():
            # Every call is a collective of all processes; one parameter is whole at a time.
            whole = {"model": read_weight(parameter)}
            whole |= {kind: read_moment(parameter, kind) for kind in self._moments}

            if self._world.leads:
                yield from ((f"{kind}.{name}", value.detach()) for kind, value in whole.items())

    @torch.no_grad()
    def restore(self, fill: Callable[[dict[str, Tensor]], None], updates: int) -> None:
        """Load a checkpoint in the first process, and hand each process its share."""
        for name, kind, whole in load_whole(fill, self._shapes, self._moments, self._world):
            parameter = self._parameters[name]
            if kind != "model":
                self._write_moment(parameter, kind, whole)
                continue
            # Gathers and redistributes under zero3, and does nothing under the others.
            with self._deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                parameter.copy_(whole)

        self._zero.refresh_fp32_params()
        set_updates(self._optimizer, updates)

    def release(self) -> None:
        """Destroy the engine, and remove its model from what DeepSpeed keeps for the whole process."""
        self._engine.destroy()
        if self._stage == 3:
            from deepspeed.runtime.zero import parameter_offload

            # Its stack of the modules in a forward keeps the model of every engine permanently.
            stack: list[nn.Module] = parameter_offload.FWD_MODULE_STACK
            stack[:] = [module for module in stack if module is not self._engine.module]

    def _write_moment(self, parameter: nn.Parameter, kind: str, value: Tensor) -> None:
        if self._stage < 3:
            self._deepspeed.utils.safe_set_full_optimizer_state(parameter, value, kind)
            return

        # safe_set_full_optimizer_state fails if the processes do not divide the parameter's size.
        share: Tensor = cast("Any", parameter).ds_tensor
        own = own_share(value, share.numel(), self._world)
        self._deepspeed.utils.safe_set_local_optimizer_state(parameter, own, kind)

    def _flat_shares(self) -> list[Tensor]:
        """Return this process's fp32 weights, one flat tensor per group (private to DeepSpeed)."""
        zero = self._zero
        return zero.fp32_partitioned_groups_flat if self._stage == 3 else zero.single_partition_of_fp32_groups

    def _gradient_shares(self) -> list[Tensor]:
        """Return this process's averaged gradients after the last backward (private to DeepSpeed).

        Their padding is zero.
        """
        if self._stage == 3:
            groups = self._zero.get_fp32_grad_partitions()
            return [gradient for group in groups.values() for gradient in group.values()]
        if self._zero.cpu_offload:
            return [share.grad for share in self._flat_shares() if share.grad is not None]
        return [gradient for group in self._zero.averaged_gradients.values() for gradient in group]

    def _create_moments(self) -> None:
        """Create zero moments for every share, so that a checkpoint can be read or written at any time.

        torch's AdamW would create them in its first step, and DeepSpeed would then link only those of the
        first parameter group.
        """
        for share in self._flat_shares():
            moments = {kind: torch.zeros_like(share) for kind in self._moments}
            self._optimizer.state[share] = {"step": torch.zeros((), device=share.device), **moments}
        if self._stage < 3:
            self._zero._lazy_init_hp_params_optimizer_state()


def _quiet_deepspeed(world: World) -> Any:
    """Import the library, and keep it from compiling anything and from messages on the terminal."""
    # DeepSpeed requires the variable, and takes it for the number of the process's GPU.
    if world.device.type == "cpu":
        os.environ.setdefault("LOCAL_RANK", str(world.local_rank))
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    else:
        os.environ["LOCAL_RANK"] = str(world.device.index)
    ignore_old_names()
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if world.device.type == "cpu":
        # Otherwise it runs a compiler at start-up, for a collective that only its inference uses. Newer
        # versions make this table on its first use, by probes that run compilers as well.
        vars(deepspeed.ops).setdefault("__compatible_ops__", {})["deepspeed_shm_comm"] = False
    return deepspeed


def _engine_config(stage: int, offload: bool, device: torch.device) -> dict[str, Any]:
    zero: dict[str, Any] = {
        "stage": stage,
        # With the default (true), zero3 replaces torch.nn.functional.linear for the rest of the process.
        "memory_efficient_linear": False,
    }
    if stage < 3 and device.type == "cuda":
        zero["reduce_bucket_size"] = _BUCKET
        zero["overlap_comm"] = not offload and _overlap_is_safe()
    if offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    elif stage < 3 and _norm_is_optional():
        zero["compute_grad_norm"] = False  # `gradient_norm` does it without a host sync
    return {
        # Required but unused: the trainer makes the batches and scales the loss.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,  # default: 1.0; `gradient_norm` clips instead
        "zero_optimization": zero,
        # The host would wait for the device in every forward, to measure a throughput that nobody reads.
        "timers": {"throughput": {"enabled": False}},
        # torch's AdamW even if moments are offloaded: DeepSpeed would compile its own.
        "zero_force_ds_cpu_optimizer": False,
    }


def _norm_is_optional() -> bool:
    """Return whether this DeepSpeed can leave the norm to `gradient_norm`; 0.19.0 always computes it."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    return "compute_grad_norm" in DeepSpeedZeroConfig.model_fields


def _overlap_is_safe() -> bool:
    """Return whether zero1 and zero2 may reduce gradients while the backward runs (private to DeepSpeed).

    Before 0.19.4 the reduction waited for one stream only. It could read gradients that another stream still
    wrote, as those of compiled blocks can (issue 8061 of DeepSpeed).
    """
    from deepspeed.runtime.zero.stage_1_and_2 import IPGBucket

    return hasattr(IPGBucket(), "copy_streams")
