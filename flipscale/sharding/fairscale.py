"""fairscale's two strategies: OSS, which shares out the moments, and its FullyShardedDataParallel."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
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
from flipscale.sharding import optimizer as adamw
from flipscale.sharding.in_place_adamw import InPlaceAdamW
from flipscale.sharding.strategy import ShardedModel
from flipscale.sharding.wrapping import (
    Autocast,
    ensure_process_group,
    from_first,
    ignore_old_names,
    own_share,
)

_MOMENTS = ("exp_avg", "exp_avg_sq")


def fairscale_sharded(model: FLIP, sharding: Sharding, optimizer: Optimizer, world: World) -> ShardedModel:
    ensure_process_group(world)
    if sharding.strategy == "fairscale_oss":
        return FairscaleOssModel(model, sharding, optimizer, world)
    return FairscaleFsdpModel(model, sharding, optimizer, world)


class FairscaleOssModel:
    """`fairscale_oss`: every parameter has an owner, which alone keeps its moments and its reduced gradient.

    Between the backward and the update the other processes hold gradients that were never reduced: only the
    owner's are read here.
    """

    def __init__(self, model: FLIP, sharding: Sharding, optimizer: Optimizer, world: World) -> None:
        from fairscale.nn.data_parallel import ShardedDataParallel
        from fairscale.optim.oss import OSS

        self._leads = world.leads
        model = model.to(world.device)
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        groups = adamw.build_optimizer(self._parameters.items(), optimizer).param_groups
        self._optimizer = OSS(groups, optim=torch.optim.AdamW)
        adamw.reset_moments(self._optimizer.optim)
        self._owned = [p for group in self._optimizer.optim.param_groups for p in group["params"]]
        with _without_remarks():
            self._wrapped = ShardedDataParallel(
                Autocast(model, world.device, enabled=sharding.precision == "bf16"),
                self._optimizer,
                broadcast_buffers=False,
                sync_models_at_startup=False,  # the same seed, or the same checkpoint, made them
                auto_refresh_trainable=False,
            )
        self._wrapped.refresh_trainable()  # else it waits for the first forward, which may be without a graph

    def forward(self, inputs: Inputs, *, reconstruct: bool = False) -> Features:
        return self._wrapped(inputs, reconstruct=reconstruct)

    @contextmanager
    def micro_step(self, last: bool) -> Iterator[None]:
        if last:
            yield
            return
        with self._wrapped.no_sync():
            yield

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def gradient_norm(self, max_norm: float | None) -> Tensor:
        # Not OSS.clip_grad_norm: it waits for the device and must clip.
        squared = torch.nn.utils.get_total_norm(self._owned_gradients()).square()
        dist.all_reduce(squared)
        norm = squared.sqrt()
        if max_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self._owned, max_norm, norm)
        return norm

    def _owned_gradients(self) -> list[Tensor]:
        return [p.grad for p in self._owned if p.grad is not None]

    def update(self, lr: float, finite: Tensor) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        adamw.skip_unless(self._optimizer.optim, finite)
        self._optimizer.step()
        # Not the optimizer's zero_grad: it would cut the gradients off from the wrapper's reduction buffers.
        self._wrapped.zero_grad()

    def reset_optimizer(self) -> None:
        adamw.reset_moments(self._optimizer.optim)

    def updates(self) -> int:
        return adamw.updates(self._optimizer.optim)

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """The weights on the first process, and on each process the moments it owns."""
        if self._leads:
            yield from self._weights().items()
        yield from self._owned_moments().items()

    def restore(self, fill: Callable[[dict[str, Tensor]], None], updates: int) -> None:
        fill(self._weights() | self._owned_moments())
        adamw.set_updates(self._optimizer.optim, updates)

    def release(self) -> None:
        """Nothing holds on to the model."""

    def _weights(self) -> dict[str, Tensor]:
        return {f"model.{name}": parameter.detach() for name, parameter in self._parameters.items()}

    def _owned_moments(self) -> dict[str, Tensor]:
        states = self._optimizer.optim.state
        owned = [(name, states[p]) for name, p in self._parameters.items() if p in states]
        return {f"{kind}.{name}": state[kind] for name, state in owned for kind in _MOMENTS}


class _Joined(nn.Module):
    """All outputs in one 1-d tensor.

    fairscale gathers the outer weights once more when the backward reaches each output, also those that
    are done with and should stay shares.
    """

    def __init__(self, model: Autocast) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Inputs, *, reconstruct: bool = False) -> Tensor:
        parts = self.model(inputs, reconstruct=reconstruct)
        return torch.cat([part.flatten() for part in parts if part is not None])


class FairscaleFsdpModel(InPlaceAdamW):
    """`fairscale_fsdp`: every parameter's weights, gradient and moments in one share per process.

    Parameters are not joined into flat ones, so that each keeps its name and its weight decay. bf16 comes
    from autocast, as under `ddp`. CUDA only: see strategy.check_sharding.
    """

    def __init__(self, model: FLIP, sharding: Sharding, optimizer: Optimizer, world: World) -> None:
        ignore_old_names()
        warnings.filterwarnings("ignore", "TypedStorage is deprecated", UserWarning)
        from fairscale.nn.data_parallel import FullyShardedDataParallel

        def wrapped(module: nn.Module) -> Any:
            return FullyShardedDataParallel(
                module,
                flatten_parameters=False,
                reshard_after_forward=sharding.reshard_after_forward,
                disable_reshard_on_root=False,  # else a forward without a graph leaves stale weights behind
                clear_autocast_cache=True,
                compute_device=world.device,
            )

        self._world = world
        model = model.to(world.device)
        # The parameters stay the same objects; only their data becomes a share.
        parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._shapes = {name: p.shape for name, p in parameters.items()}
        for transformer in model.transformers:
            for number, block in enumerate(transformer.resblocks):
                transformer.resblocks[number] = wrapped(block)
        bf16 = sharding.precision == "bf16"
        self._wrapped = wrapped(_Joined(Autocast(model, world.device, enabled=bf16)))
        self._spec = model.spec
        super().__init__(parameters, adamw.build_optimizer(parameters.items(), optimizer))

    def forward(self, inputs: Inputs, *, reconstruct: bool = False) -> Features:
        sizes = [0 if given is None else len(given) * self._spec.embed_dim for given in inputs[:2]]
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
    def micro_step(self, last: bool) -> Iterator[None]:
        """Gradients are reduced in every micro-batch, since each process keeps a share alone."""
        yield

    def gradient_norm(self, max_norm: float | None) -> Tensor:
        gradients = [p.grad for p in self._parameters.values() if p.grad is not None]
        squared = torch.nn.utils.get_total_norm(gradients).square()
        dist.all_reduce(squared)
        norm = squared.sqrt()
        if max_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self._parameters.values(), max_norm, norm)
        return norm

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """The whole state on the first process, nothing on the others."""
        ranks = Ranks.of()
        for name, shares in self._shares().items():
            shape = self._shapes[name]
            for kind, share in shares.items():
                whole = ranks.gather(share.flatten()).flatten()[: shape.numel()].view(shape)
                if self._world.leads:
                    yield f"{kind}.{name}", whole

    def restore(self, fill: Callable[[dict[str, Tensor]], None], updates: int) -> None:
        tensors: dict[str, Tensor] = {}
        if self._world.leads:
            for name, shape in self._shapes.items():
                tensors |= {f"{kind}.{name}": torch.empty(shape) for kind in ("model", *_MOMENTS)}
        fill(tensors)
        for name, shares in self._shares().items():
            for kind, share in shares.items():
                value = from_first(tensors, f"{kind}.{name}", self._shapes[name], self._world)
                share.copy_(own_share(value, share.numel(), self._world).view_as(share))
        adamw.set_updates(self._optimizer, updates)

    def _shares(self) -> dict[str, dict[str, Tensor]]:
        """This process's share of each parameter's weights and moments: 1-d, or whole on one process."""
        return {
            name: {"model": p.detach(), **{kind: self._optimizer.state[p][kind] for kind in _MOMENTS}}
            for name, p in self._parameters.items()
        }


@contextmanager
def _without_remarks() -> Iterator[None]:
    """Without the sizes that fairscale logs for the root logger, where no name tells them apart."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    yield
    logging.disable(before)
