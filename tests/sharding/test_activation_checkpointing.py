"""Recomputed activations give the same gradients to the bit, and need less memory."""

from __future__ import annotations

import itertools
import shutil
from typing import Any

import pytest
import torch
from support.live_bytes import LiveBytes
from torch import Tensor
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

from flipscale.losses.contrastive import contrastive_loss
from flipscale.models.flip import FLIP, build_model
from flipscale.models.inputs import Inputs
from flipscale.models.presets import preset
from flipscale.sharding.activation_checkpointing import apply_activation_checkpointing
from flipscale.sharding.compilation import compile_blocks

MODES = ("none", "full", "selective", "every 2", "every 4")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def tiny_model(mode: str) -> FLIP:
    model = build_model(preset("vit_tiny_p8", vocab_size=50, context_length=16))
    apply_activation_checkpointing(model, mode)
    return model


def pairs(count: int = 6) -> Inputs:
    random = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, 64, 64), dtype=torch.uint8, generator=random)
    texts = torch.randint(50, (count, 16), generator=random)
    keep = torch.rand(count, 64, generator=random).argsort(dim=1)[:, :32]
    return Inputs(images, texts, keep)


def loss_of(model: FLIP) -> Tensor:
    images, texts, scale, *_ = model(pairs())
    assert images is not None
    assert texts is not None
    return contrastive_loss(images, texts, scale)


def held_after_forward(mode: str) -> int:
    """Return the bytes that the forward keeps for the backward."""
    model = tiny_model(mode)
    with LiveBytes() as live:
        loss = loss_of(model)
    held = live.held(without=(*model.parameters(), *model.buffers()))
    loss.backward()
    return held


@pytest.mark.parametrize("mode", MODES[1:])
def test_gradients_are_the_same_to_the_bit(mode: str) -> None:
    plain, recomputing = tiny_model("none"), tiny_model(mode)
    losses = [loss_of(plain), loss_of(recomputing)]
    for loss in losses:
        loss.backward()
    assert torch.equal(*losses)
    expected = dict(plain.named_parameters())
    for name, parameter in recomputing.named_parameters():
        gradient = expected[name].grad
        assert parameter.grad is not None
        assert gradient is not None
        assert torch.equal(parameter.grad, gradient), name


@pytest.mark.parametrize("mode", MODES)
def test_nothing_is_renamed(mode: str) -> None:
    plain, model = build_model(preset("vit_tiny_p8"), device="meta"), tiny_model(mode)
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert list(model.state_dict()) == list(plain.state_dict())
    model.load_state_dict(tiny_model("none").state_dict())


def test_less_is_held_the_more_is_recomputed() -> None:
    held = {mode: held_after_forward(mode) for mode in MODES}
    order = ["full", "every 2", "every 4", "none"]
    assert all(held[less] < held[more] for less, more in itertools.pairwise(order)), held
    assert held["full"] < held["selective"] < held["none"], held
    # Of a block's residual widths: 16 to 17 by default, 1 with full, 10 with selective.
    assert held["full"] < 0.15 * held["none"], held
    assert held["selective"] < 0.75 * held["none"], held


class Counted(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.calls[name] = self.calls.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


def calls_in_backward(mode: str) -> dict[str, int]:
    loss = loss_of(tiny_model(mode))
    with Counted() as counted:
        loss.backward()
    return counted.calls


def test_selective_repeats_neither_attention_nor_matrix_products() -> None:
    plain, full, selective = (calls_in_backward(mode) for mode in ("none", "full", "selective"))
    attention = "_scaled_dot_product_flash_attention_for_cpu"
    assert full[attention] == 6
    assert attention not in plain
    assert attention not in selective
    assert full["addmm"] > plain.get("addmm", 0)
    assert selective.get("addmm", 0) == plain.get("addmm", 0)
    assert selective["native_layer_norm"] == 2 * 6


def held_when_compiled(mode: str) -> int:
    """Return the bytes that the forward of a compiled block keeps for its backward; no kernel is made."""
    model = tiny_model(mode)
    compile_blocks(model)
    parameters = {parameter.data_ptr() for parameter in model.parameters()}
    held: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        held[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with (
        torch.compiler.set_stance(force_backend="aot_eager"),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        model.transformers[0].resblocks[0](torch.randn(6, 33, 128, requires_grad=True))
    return sum(size for start, size in held.items() if start not in parameters)


def test_less_is_held_of_a_compiled_block_that_recomputes() -> None:
    held = {mode: held_when_compiled(mode) for mode in ("none", "selective", "full")}
    assert held["full"] < 0.15 * held["none"], held
    assert held["full"] < held["selective"] < 0.75 * held["none"], held


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on CPUs")
@pytest.mark.parametrize("mode", [pytest.param("full", marks=pytest.mark.long), "selective"])
def test_compiled_blocks_give_the_same_gradients(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled kernels round in another order.

    One tower is compiled: both have the same blocks, and each kernel takes the C++ compiler a second.
    """
    plain, compiled = tiny_model("none"), tiny_model(mode)
    monkeypatch.setattr(FLIP, "transformers", (compiled.transformers[0],))
    compile_blocks(compiled)
    torch.compiler.reset()
    counters.clear()
    loss_of(plain).backward()
    loss_of(compiled).backward()

    assert counters["stats"]["unique_graphs"] == 1
    for (name, a), (_, b) in zip(plain.named_parameters(), compiled.named_parameters(), strict=True):
        assert a.grad is not None
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-4, atol=1e-6, msg=name)
