"""fairscale's FullyShardedDataParallel: weights, gradients and moments in one share per process."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from flipscale.config import Optimizer, Sharding
from flipscale.distributed.ranks import Ranks
from flipscale.distributed.world import World
from flipscale.models.flip import FLIP, Features
from flipscale.models.inputs import Inputs
from flipscale.sharding.in_place_optimizer import InPlaceOptimizer
from flipscale.sharding.optimizer import set_updates
from flipscale.sharding.wrapping import (
    Autocast,
    ensure_process_group,
    ignore_old_names,
    load_whole,
    own_share,
)


class _Joined(nn.Module):
    """A module that returns all outputs in one 1-d tensor.

    fairscale gathers the outer weights again when the backward reaches each output. It does so even after the
    weights are no longer needed and should stay shares.
    """

    def __init__(self, model: Autocast) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Inputs, *, reconstruct: bool = False) -> Tensor:
        """Run FLIP.forward, and join its features, scale, bias and reconstruction loss."""
        parts = self.model(inputs, reconstruct=reconstruct)
        return torch.cat([part.flatten() for part in parts if part is not None])


class FairscaleFsdpModel(InPlaceOptimizer):
    """The strategy `fairscale_fsdp`: weights, gradients and moments in one share per process.

    Parameters are not joined into flat ones, so that each keeps its name and its weight decay. bf16 comes
    from autocast, as in `ddp`. It runs on CUDA GPUs only; see `limits.check_sharding`.

    Args:
        model: The model with its weights.
        sharding: The `sharding` block of the job.
        optimizer: The `optimizer` block of the job.
        world: The processes of the run.
    """

    def __init__(self, model: FLIP, sharding: Sharding, optimizer: Optimizer, world: World) -> None:
        ensure_process_group(world)
        ignore_old_names()
        warnings.filterwarnings("ignore", "TypedStorage is deprecated", UserWarning)
        from fairscale.nn.data_parallel import FullyShardedDataParallel

        def wrapped(module: nn.Module) -> Any:
            return FullyShardedDataParallel(
                module,
                flatten_parameters=False,
                reshard_after_forward=sharding.reshard_after_forward,
                disable_reshard_on_root=False,  # otherwise a forward without a graph leaves stale weights
                clear_autocast_cache=True,
                compute_device=world.device,
            )

        self._world = world
        self._spec = model.spec
        model = model.to(world.device)
        # The parameters stay the same objects; only their data becomes a share.
        parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._shapes = {name: p.shape for name, p in parameters.items()}

        for transformer in model.transformers:
            for number, block in enumerate(transformer.resblocks):
                transformer.resblocks[number] = wrapped(block)
        bf16 = sharding.precision == "bf16"
        self._wrapped = wrapped(_Joined(Autocast(model, world.device, enabled=bf16)))
        super().__init__(parameters, optimizer)

    def forward(self, inputs: Inputs, *, reconstruct: bool = False) -> Features:
        """Run FLIP.forward in the precision of the job."""
        sizes = [0 if part is None else len(part) * self._spec.embed_dim for part in inputs[:2]]
        joined: Tensor = self._wrapped(inputs, reconstruct=reconstruct)
        image_features, text_features, head = joined.split([*sizes, len(joined) - sum(sizes)])

        rest = iter(head.unbind())
        return Features(
            None if inputs.images is None else image_features.view(-1, self._spec.embed_dim),
            None if inputs.texts is None else text_features.view(-1, self._spec.embed_dim),
            next(rest),
            next(rest) if self._spec.logit_bias else None,
            next(rest, None),
        )

    @contextmanager
    def micro_step(self, last: bool) -> Generator[None]:
        """Reduce gradients in every micro-batch, since each process keeps only a share of them."""
        yield

    def gradient_norm(self, max_norm: float | None) -> Tensor:
        """Return the norm of the whole gradient, and clip it to `max_norm` if there is one."""
        gradients = [p.grad for p in self._parameters.values() if p.grad is not None]
        squared = torch.nn.utils.get_total_norm(gradients).square()
        dist.all_reduce(squared)
        norm = squared.sqrt()

        if max_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self._parameters.values(), max_norm, norm)
        return norm

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the whole state in the first process, and nothing in the others."""
        ranks = Ranks.of()
        for name, shares in self._shares().items():
            shape = self._shapes[name]
            for kind, share in shares.items():
                whole = ranks.gather(share.flatten()).flatten()[: shape.numel()].view(shape)
                if self._world.leads:
                    yield f"{kind}.{name}", whole

    def restore(self, fill: Callable[[dict[str, Tensor]], None], updates: int) -> None:
        """Load a checkpoint in the first process, and hand each process its share."""
        shares = self._shares()
        for name, kind, whole in load_whole(fill, self._shapes, self._moments, self._world):
            share = shares[name][kind]
            share.copy_(own_share(whole, share.numel(), self._world).view_as(share))
        set_updates(self._optimizer, updates)

    def _shares(self) -> dict[str, dict[str, Tensor]]:
        """Return this process's share of weights and moments: 1-d, or whole in a run of one process."""
        return {
            name: {"model": p.detach(), **{kind: self._optimizer.state[p][kind] for kind in self._moments}}
            for name, p in self._parameters.items()
        }
