"""The compilation of the transformer blocks by torch.compile."""

from __future__ import annotations

import logging
import os
import shutil

import torch

from flipscale.errors import UserError
from flipscale.models.flip import FLIP

_MOST_GRAPHS = 64
"""The most graphs of a block: one for each tower, number of pairs and number of tokens, with a gradient and
without. Above torch's own limit, 8, blocks run uncompiled."""

_log = logging.getLogger(__name__)


def check_compiler(device_type: str) -> None:
    """Check that this machine has the compiler that torch.compile needs.

    Args:
        device_type: "cuda" or "cpu". The kernels of GPUs need a C compiler, too, for what launches them.

    Raises:
        UserError: If this machine has no compiler.
    """
    variable, usual = ("CXX", ["g++"]) if device_type == "cpu" else ("CC", ["gcc", "clang"])
    names = os.environ.get(variable, "").split()[:1] or usual
    if not any(shutil.which(name) for name in names):
        raise UserError(
            f"sharding.compile needs a compiler, and this machine has no {' or '.join(names)}; install one, "
            f"name another in {variable}, or set sharding.compile to false"
        )


def compile_blocks(model: FLIP) -> None:
    """Have torch compile each block of every tower when it is first called, once per shape of its input.

    Call it after `apply_activation_checkpointing` and before sharding the blocks. It changes settings of
    torch.compile for the whole process.

    Args:
        model: The model; its blocks are changed in place.
    """
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, _MOST_GRAPHS)
    # DDP would have the graph of a block cut where its buckets of gradients end.
    config.optimize_ddp = False
    # With `selective`, torch warns of operations in place; the blocks have none.
    logging.getLogger("torch._higher_order_ops.wrap").addFilter(_is_not_about_recomputation)

    for transformer in model.transformers:
        for block in transformer.resblocks:
            block.compile(dynamic=False)


class CompilationCheck:
    """Warns after the first step if the job compiles its blocks and torch has compiled nothing.

    Args:
        wanted: Whether the job compiles its blocks.
    """

    def __init__(self, *, wanted: bool) -> None:
        self._due = wanted
        self._graphs_before = _compiled_graphs() if wanted else 0

    def after_step(self) -> None:
        """Look for compiled graphs. Only the first call does anything."""
        if self._due and _compiled_graphs() == self._graphs_before:
            _log.warning(
                "sharding.compile is true, but torch compiled no block, so that training is slower; unset "
                "TORCH_COMPILE_DISABLE and TORCHDYNAMO_DISABLE, or set sharding.compile to false"
            )
        self._due = False


def _compiled_graphs() -> int:
    """Return how many graphs torch has compiled in this process."""
    from torch._dynamo.utils import counters  # slow to import

    return counters["stats"]["unique_graphs"]


def _is_not_about_recomputation(record: logging.LogRecord) -> bool:
    return "context_fn is passed to torch.utils.checkpoint" not in record.getMessage()
