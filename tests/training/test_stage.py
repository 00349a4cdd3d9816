"""Phases of another image or patch size.

The end of the run is the same for any stops and any sharding. The tests also check the inputs of each phase
and the content of its checkpoints.
"""

from __future__ import annotations

import gc
import json
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.stop_at import StopAt
from support.tiny_run import TinyRun

from flipscale.config import Job, load_job
from flipscale.data.text.of_job import load_job_tokenizer
from flipscale.distributed.world import World, leave_world
from flipscale.errors import RunError, StoppedEarly, UserError
from flipscale.interop.load_model import load_model
from flipscale.interop.openclip_export import export_openclip
from flipscale.interop.resampling import KERNEL, resample_state
from flipscale.interop.verification import verify_export
from flipscale.models.flip import FLIP
from flipscale.models.inputs import Inputs
from flipscale.models.of_job import model_spec
from flipscale.models.presets import resized
from flipscale.orchestration.segments.segment import Segment
from flipscale.progress import Progress
from flipscale.runs import checkpoint
from flipscale.runs.directory import run_directory
from flipscale.runs.evaluations import read_evaluations
from flipscale.runs.manifest import directory_name
from flipscale.training import stage as stages
from flipscale.training import trainer
from flipscale.training.check_job import check_job
from flipscale.training.gradients import accumulate_gradients
from flipscale.training.stage import Stage

MakeRun = Callable[..., TinyRun]
ALONE = World(0, 1, 0, 1, torch.device("cpu"))
COMMON = {"batch_size": 16, "base_lr": 0.02}
PHASES: list[dict[str, object]] = [
    {"name": "small", "samples": 48, "mask_ratio": 0.5, "image_size": 24, **COMMON},  # 9 patches, 4 visible
    {
        "name": "large",
        "samples": 40,
        "mask_ratio": 0.25,
        "image_size": 48,
        "patch_size": 12,
        **COMMON,
    },  # 12 of 16
]
SETTINGS: dict[str, Any] = {
    "phases": PHASES,
    "checkpoint": {"every": "1h"},
    "logging": {"every": "1 steps", "tensorboard": False},
}


@pytest.fixture(autouse=True)
def _afresh() -> Iterator[None]:
    """Leave the process group of any other test: FSDP makes one for itself, and DeepSpeed remembers it."""
    torch.set_num_threads(1)
    _leave()
    yield
    _leave()


def _leave() -> None:
    leave_world()
    groups = sys.modules.get("deepspeed.utils.groups")
    if release := getattr(groups, "_release_process_group_references", None):  # not in 0.19.0
        release()


def train(run: TinyRun, *overrides: str, steps: int = 10**6) -> Progress:
    job = load_job(run.job, overrides)
    directory = run_directory(job)
    segment = Segment(directory, ALONE, StopAt(directory, steps), hang=job.hang)
    with segment.locked():
        return trainer.train(job, check_job(job, 1), segment)


def stopped(run: TinyRun, steps: int) -> TinyRun:
    with pytest.raises(StoppedEarly):
        train(run, steps=steps)
    return run


@pytest.fixture
def at_boundary(tiny_run: MakeRun) -> TinyRun:
    """Return a run that stopped at the end of its first phase."""
    return stopped(tiny_run("boundary", **SETTINGS), 3)


@pytest.mark.slow
def test_stops_around_the_boundary_leave_no_trace(tiny_run: MakeRun) -> None:
    straight = tiny_run("straight", **SETTINGS)
    train(straight)
    for steps in (2, 3, 4):  # a step before it, at it, a step after it
        run = stopped(tiny_run(f"stopped{steps}", **SETTINGS), steps)
        assert run.last_manifest()["progress"]["samples_seen"] == steps * 16
        side = run.tensors()[f"model.{KERNEL}"].shape[-1]
        assert side == (8 if steps <= 3 else 12)
        train(run)
        assert run.weights() == straight.weights()
        assert run.metrics() == straight.metrics()
        assert run.last_manifest()["progress"] == straight.last_manifest()["progress"]


@pytest.mark.slow
def test_learned_positions_continue_across_the_boundary(tiny_run: MakeRun) -> None:
    settings = SETTINGS | {"model": "clip_micro_p8", "data": {"tokenizer": {"kind": "clip_bpe"}}}
    straight, run = tiny_run("straight", **settings), tiny_run("stopped", **settings)
    train(straight)
    train(stopped(run, 3))
    assert run.weights() == straight.weights()
    assert run.metrics() == straight.metrics()


@pytest.mark.slow
def test_decoder_continues_across_the_boundary(tiny_run: MakeRun) -> None:
    settings = SETTINGS | {"loss": {"reconstruction": {"width": 32, "layers": 1, "heads": 2}}}
    straight, run = tiny_run("straight", **settings), tiny_run("stopped", **settings)
    train(straight)
    stopped(run, 3)
    assert run.tensors()["model.reconstruction.pixels.weight"].shape == (3 * 8 * 8, 32)
    train(run)
    assert run.tensors()["model.reconstruction.pixels.weight"].shape == (3 * 12 * 12, 32)
    assert run.weights() == straight.weights()
    assert run.metrics() == straight.metrics()


def test_the_order_of_the_samples_is_that_of_phases_of_one_size(tiny_run: MakeRun) -> None:
    plain = [
        {k: v for k, v in phase.items() if not k.endswith("_size") or k == "batch_size"} for phase in PHASES
    ]
    changing, same = tiny_run("changing", **SETTINGS), tiny_run("same", **SETTINGS | {"phases": plain})
    assert train(changing).digest == train(same).digest


SLOW_TO_MAKE = ("hsdp", "zero1", "zero3", "fairscale_oss")


@pytest.mark.parametrize(
    "strategy",
    [
        *("ddp", "fsdp"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_TO_MAKE),
        pytest.param("compiled", marks=pytest.mark.long),
    ],
)
def test_every_strategy_enters_a_phase_with_the_resampled_state(
    at_boundary: TinyRun, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = {
        "hsdp": ["sharding.strategy=hsdp", "sharding.shard_size=1"],
        "compiled": ["sharding.strategy=ddp", "sharding.compile=true"],
    }
    job = load_job(at_boundary.job, more.get(strategy, [f"sharding.strategy={strategy}"]))
    found = checkpoint.find(at_boundary.output / "checkpoints")
    assert found
    models: list[weakref.ref[FLIP]] = []
    shard = stages.shard

    def watched(model: FLIP, *rest: Any) -> Any:
        assert all(old() is None for old in models), "the model before is still in memory"
        models.append(weakref.ref(model))
        return shard(model, *rest)

    monkeypatch.setattr(stages, "shard", watched)
    tokenizer = load_job_tokenizer(job.data.tokenizer)
    stage = Stage(job, check_job(job, 1), tokenizer, run_directory(job).weights, ALONE, found)
    assert stage.has_shape_of(0)
    assert not stage.has_shape_of(1)
    _step_in_vain(stage, job)
    gc.freeze()  # as the stream does
    stage.begin_phase(1, found)
    gc.unfreeze()
    assert stage.has_shape_of(1)
    assert len(models) == 2

    before = at_boundary.tensors()
    spec = model_spec(job, tokenizer)
    old, new = resized(spec, 24), resized(spec, 48, 12)
    weights = {n.removeprefix("model."): t for n, t in before.items() if n.startswith("model.")}
    wanted = {f"model.{name}": tensor for name, tensor in resample_state(weights, old, new).items()}
    for kind in ("exp_avg", "exp_avg_sq"):
        wanted |= {name: tensor for name, tensor in before.items() if name.startswith(f"{kind}.")}
        wanted[f"{kind}.{KERNEL}"] = torch.zeros_like(wanted[f"model.{KERNEL}"])
    state = {name: _whole(tensor) for name, tensor in stage.model.state()}
    assert state.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(state[name], wanted[name])] == []
    assert stage.model.updates() == found.progress.optimizer_steps == 3


def _step_in_vain(stage: Stage, job: Job) -> None:
    """Do a step without its update, so that the library keeps all that it keeps after a step."""
    side, texts = stage.spec.vision.image_size, torch.zeros(4, 16, dtype=torch.int64)
    images = torch.zeros(4, 3, side, side, dtype=torch.uint8)
    accumulate_gradients(stage.model, Inputs(images, texts, None), job.loss, job.sharding.micro_batch)
    stage.model.gradient_norm(None)
    stage.model.update(0.0, torch.tensor(False))


def _whole(tensor: Any) -> torch.Tensor:
    tensor = tensor.detach()
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def test_phase_has_its_image_size_and_mask(
    tiny_run: MakeRun, data_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check image sides and visible patches in training and in evaluation, also in one after a stop."""
    seen: list[tuple[int, int | None]] = []
    forward = FLIP.forward

    def recording_forward(model: FLIP, inputs: Inputs, *, reconstruct: bool = False) -> Any:
        if inputs.images is not None:
            seen.append((inputs.images.shape[-1], None if inputs.keep is None else inputs.keep.shape[1]))
        return forward(model, inputs, reconstruct=reconstruct)

    monkeypatch.setattr(FLIP, "forward", recording_forward)
    evaluation = {"every": "1000 steps", "retrieval": {"captions": str(data_set / "val/00000.tar")}}
    run = tiny_run(**SETTINGS | {"evaluation": evaluation})
    stopped(run, 3)
    train(run)
    assert list(dict.fromkeys(seen)) == [(24, 4), (24, None), (48, 12), (48, None)]
    assert [recorded.samples_seen for recorded in read_evaluations(run.output)] == [48, 88]


def test_a_phase_that_has_not_begun_may_get_another_shape(at_boundary: TinyRun) -> None:
    with pytest.raises(UserError, match=r"phases\.0\.image_size was 24, now 32"):
        train(at_boundary, "phases.0.image_size=32")
    train(at_boundary, "phases.1.image_size=36")
    assert load_model(at_boundary.output, ALONE).model.spec.vision.image_size == 36


def test_a_damaged_end_of_a_phase_is_named(at_boundary: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint is whole when the run starts, and damaged when the phase begins."""
    (manifest,) = (at_boundary.output / "checkpoints").glob("samples_*48/manifest.json")
    begin = Segment.training
    monkeypatch.setattr(Segment, "training", lambda self: (manifest.unlink(), begin(self)))
    with pytest.raises(RunError, match=r"cannot begin from .*samples_000000000048: it has no manifest"):
        train(at_boundary)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("phases.0.image_size=25", r"phases\.0 \(small\): image size 25 .* patch size 8; .* 24, 32"),
        ("phases.1.patch_size=13", r"phases\.1 \(large\): image size 48 .* patch size 13; .* 39, 52"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_by_phase(tiny_run: MakeRun, override: str, message: str) -> None:
    run = tiny_run(**SETTINGS)
    with pytest.raises(UserError, match=message):
        check_job(load_job(run.job, [override]), 1)


@pytest.mark.slow
@pytest.mark.usefixtures("stock_in_process")
def test_stock_open_clip_loads_the_last_shape(tiny_run: MakeRun, tmp_path: Path) -> None:
    run = tiny_run(**SETTINGS)
    train(run)
    first = load_model(run.output / "checkpoints" / directory_name(48), ALONE)
    assert (first.model.spec.vision.image_size, first.model.spec.vision.patch_size) == (24, 8)
    trained, out = load_model(run.output, ALONE), tmp_path / "export"
    assert (trained.model.spec.vision.image_size, trained.model.spec.vision.patch_size) == (48, 12)
    export_openclip(trained.model, trained.model.spec, out, tokenizer=trained.tokenizer)
    verify_export(out, trained.model, trained.tokenizer)
    config = json.loads((out / "open_clip_config.json").read_text())["model_cfg"]["vision_cfg"]
    assert (config["image_size"], config["patch_size"]) == (48, 12)


@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy", ["fsdp", *(pytest.param(name, marks=pytest.mark.long) for name in ("ddp", "zero3"))]
)
def test_two_processes_cross_the_boundary_as_one(tiny_run: MakeRun, strategy: str) -> None:
    """For fsdp, one process also stops there and two resume."""
    one, two = tiny_run("one", **SETTINGS), tiny_run("two", **SETTINGS)
    train(one)
    if strategy == "fsdp":
        stopped(two, 3)
    done = two.train(f"sharding.strategy={strategy}", processes=2)
    assert done.returncode == 0, done.stderr
    assert [m["digest"] for m in two.metrics()] == [m["digest"] for m in one.metrics()]
    apart = [abs(a["loss"] - b["loss"]) for a, b in zip(one.metrics(), two.metrics(), strict=True)]
    assert max(apart) <= 1e-4  # as in test_strategy_matrix
