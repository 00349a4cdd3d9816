"""Packed captions under the strategies: the training of whole captions, and few graphs.

Those of DeepSpeed are in test_deepspeed.py: it keeps its process group for as long as the process lives.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support.one_process import CLIP_SPEC, OneProcess, make_captioned_pairs
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

from flipscale.distributed.world import leave_world

STRATEGIES: dict[str, dict[str, Any]] = {
    "ddp": {},
    "fsdp": {},
    "hsdp": {"shard_size": 1},
    "fairscale_oss": {},
}
SHORT = {
    *(("ddp", "none", None), ("ddp", "full", 3), ("fsdp", "none", None), ("fsdp", "selective", 3)),
    *(("hsdp", "full", None), ("fairscale_oss", "full", 3)),
}
CASES = [
    pytest.param(*case, marks=() if case in SHORT else pytest.mark.long)
    for case in itertools.product(STRATEGIES, ("none", "selective", "full"), (None, 3))
]


@pytest.fixture(scope="module", autouse=True)
def _one_process_group() -> Iterator[None]:
    torch.set_num_threads(1)
    yield
    leave_world()
    torch.compiler.reset()


@pytest.mark.parametrize(("strategy", "mode", "micro_batch"), CASES)
def test_training_is_that_of_whole_captions(strategy: str, mode: str, micro_batch: int | None) -> None:
    settings: dict[str, Any] = {"activation_checkpointing": mode, "micro_batch": micro_batch}
    settings |= STRATEGIES[strategy]
    whole, packed = (OneProcess.start(strategy, spec=CLIP_SPEC, **settings) for _ in range(2))
    for step in range(4):
        expected = whole.step(step, pairs=make_captioned_pairs(step, packed=False))
        got = packed.step(step, pairs=make_captioned_pairs(step, packed=True))
        assert got == pytest.approx(expected, rel=1e-5)


def test_each_length_of_the_row_is_one_graph() -> None:
    torch.compiler.reset()
    counters.clear()
    run = OneProcess.start("ddp", spec=CLIP_SPEC, compile=True, activation_checkpointing="selective")
    whole = OneProcess.start("ddp", spec=CLIP_SPEC)
    count = CompileCounterWithBackend("eager")
    graphs: list[int] = []
    for step in (0, 1, 2, 0, 1, 2):
        expected = whole.step(step, pairs=make_captioned_pairs(step, packed=False))
        with torch.compiler.set_stance(force_backend=count):
            got = run.step(step, pairs=make_captioned_pairs(step, packed=True))
        assert got == pytest.approx(expected, rel=1e-5)
        graphs.append(count.frame_count)
    assert graphs == [2, 3, 4, 4, 4, 4]  # one for the images
    assert not counters["graph_break"]
