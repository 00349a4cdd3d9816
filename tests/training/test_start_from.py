"""`start_from` with a stand-in for the sharded model: the weights that it fills in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.starting_weights import export_some, started_from
from support.stock_in_process import run_stock_in_process
from support.tiny_run import TinyRun

from flipscale.cli.import_model import import_model
from flipscale.config import load_job
from flipscale.data.text.tokenizer import load_tokenizer
from flipscale.distributed.world import World
from flipscale.interop import verification
from flipscale.interop.openclip_import import import_openclip
from flipscale.interop.resampling import resample_state
from flipscale.interop.weights import WEIGHTS
from flipscale.models.flip import build_model
from flipscale.models.presets import ModelSpec
from flipscale.runs.directory import run_directory
from flipscale.training import starting_weights

MakeRun = Callable[..., TinyRun]
ALONE = World(0, 1, 0, 1, torch.device("cpu"))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def exported(data_set: Path, tmp_path: Path) -> Path:
    return export_some(data_set, tmp_path / "exported")


class Pair(World):
    """Two processes one after the other: the second gets the answers that the first has computed."""

    answers: ClassVar[list[Any]] = []

    def lead(self, work: Callable[[], Any]) -> Any:
        if not self.leads:
            return self.answers.pop(0)
        self.answers.append(work())
        return self.answers[-1]


class Filled:
    """The part of a sharded model that `start_from` uses: `fill` gets its state dict."""

    def __init__(self, spec: ModelSpec) -> None:
        self.tensors = {f"model.{name}": value for name, value in build_model(spec).state_dict().items()}

    def restore(self, fill: Callable[[dict[str, torch.Tensor]], None], updates: int) -> None:
        fill(self.tensors)


def test_processors_that_round_differently_start_with_the_same_bits(
    tiny_run: MakeRun, data_set: Path, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replicas are never compared again: a last bit between them would stay for the whole run."""
    spec, _ = import_openclip(exported)
    larger = replace(spec, vision=replace(spec.vision, image_size=48, patch_size=16))
    job = load_job(tiny_run(**started_from(exported, image_size=48, patch_size=16)).job)
    tokenizer = load_tokenizer("wordpiece", str(data_set / "vocab.txt"), 16)
    directory = run_directory(job)
    directory.path.mkdir()
    started: list[dict[str, torch.Tensor]] = []
    for rank in range(2):
        if rank == 1:
            monkeypatch.setattr(
                starting_weights,
                "resample_state",
                lambda *given: {name: value * (1 + 1e-6) for name, value in resample_state(*given).items()},
            )
        model: Any = Filled(larger)
        world = Pair(rank, 2, 0, 1, torch.device("cpu"))
        starting_weights.start_from(job, larger, tokenizer, model, directory.weights, world)
        started.append(model.tensors)
    leader, follower = started
    assert not torch.equal(
        leader["model.visual.conv1.weight"], Filled(larger).tensors["model.visual.conv1.weight"]
    )
    assert [name for name in leader if not torch.equal(leader[name], follower[name])] == []


def test_foreign_flip_and_random_flip_fit_the_preset(
    tiny_run: MakeRun, data_set: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, state = import_openclip(exported)
    save_file(load_file(exported / WEIGHTS), tmp_path / WEIGHTS)  # without flipscale's header
    (tmp_path / WEIGHTS).replace(exported / WEIGHTS)  # `state` may be mapped from the old file
    monkeypatch.setattr(verification.subprocess, "run", run_stock_in_process)
    import_model(str(exported), tmp_path / "trial", weights=None, pretrained=None, random=True)
    tokenizer = load_tokenizer("wordpiece", str(data_set / "vocab.txt"), 16)
    for source, wanted in ((exported, state), (tmp_path / "trial", build_model(spec).state_dict())):
        job = load_job(tiny_run(f"from_{source.name}", **started_from(source)).job)
        directory = run_directory(job)
        directory.path.mkdir()
        model: Any = Filled(spec)
        starting_weights.start_from(job, spec, tokenizer, model, directory.weights, ALONE)
        for name, value in wanted.items():
            torch.testing.assert_close(model.tensors[f"model.{name}"], value, rtol=0.0, atol=1e-6)
