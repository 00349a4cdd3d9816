"""A run that starts from a trained model: the sources, the sizes that may differ, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.shards import tiny_tokenizer
from support.starting_weights import ONE_STEP, export_some, started_from
from support.stock_in_process import run_stock_in_process
from support.stop_at import StopAt
from support.tiny_run import TinyRun

from flipscale.cli.export import export
from flipscale.cli.import_model import import_model
from flipscale.config import load_job
from flipscale.data.text.tokenizer import load_tokenizer
from flipscale.distributed.world import World
from flipscale.errors import StoppedEarly, UserError
from flipscale.interop import verification
from flipscale.interop.openclip_directory import CONFIG
from flipscale.interop.openclip_export import export_openclip
from flipscale.interop.openclip_import import import_openclip
from flipscale.interop.resampling import resample_state
from flipscale.models.flip import build_model
from flipscale.models.presets import preset
from flipscale.orchestration.segments.segment import Segment
from flipscale.runs.directory import run_directory
from flipscale.training import trainer
from flipscale.training.check_job import check_job

MakeRun = Callable[..., TinyRun]
ALONE = World(0, 1, 0, 1, torch.device("cpu"))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def exported(data_set: Path, tmp_path: Path) -> Path:
    return export_some(data_set, tmp_path / "exported")


def train(run: TinyRun, *, steps: int = 10**6) -> None:
    job = load_job(run.job)
    directory = run_directory(job)
    trainer.train(job, check_job(job, 1), Segment(directory, ALONE, StopAt(directory, steps), hang=job.hang))


def lost_before_a_checkpoint(_: object) -> None:
    raise KeyboardInterrupt


def assert_weights(run: TinyRun, wanted: dict[str, torch.Tensor]) -> None:
    tensors = run.tensors()
    assert [name for name, value in wanted.items() if not torch.equal(tensors[f"model.{name}"], value)] == []


def test_flip_is_exported_imported_tuned_and_exported_again(
    tiny_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every export and import compares with stock open_clip (1e-5), in this process to save time."""
    monkeypatch.setattr(verification.subprocess, "run", run_stock_in_process)
    masked = {"name": "masked", "samples": 64, "mask_ratio": 0.5, "batch_size": 16, "base_lr": 0.02}
    tuned = {"name": "tuned", "samples": 48, "mask_ratio": 0.0, "batch_size": 16, "base_lr": 0.01}
    first = tiny_run("first", phases=[masked])
    train(first)
    export(first.output, tmp_path / "out")
    import_model(str(tmp_path / "out"), tmp_path / "in", weights=None, pretrained=None, random=False)
    _, state = import_openclip(tmp_path / "in")
    assert_weights(first, state)

    second = tiny_run("second", **{**started_from(tmp_path / "in"), "phases": [tuned]})
    train(second)
    export(second.output, tmp_path / "tuned")
    _, changed = import_openclip(tmp_path / "tuned")
    assert all(not torch.equal(changed[name], state[name]) for name in state)
    config = json.loads((tmp_path / "tuned" / CONFIG).read_text())
    assert config["flipscale"]["provenance"]["weights"] == str(tmp_path / "in")
    assert capsys.readouterr().out.count("verified with stock open_clip") == 3


def test_from_a_run_and_from_a_checkpoint(tiny_run: MakeRun, exported: Path) -> None:
    first = tiny_run("first", **started_from(exported))
    train(first)
    _, state = import_openclip(exported)
    assert_weights(first, state)
    for name, source in (("of_run", first.output), ("of_checkpoint", first.newest())):
        again = tiny_run(name, **started_from(source))
        train(again)
        assert_weights(again, state)
        assert json.loads((again.output / "weights.json").read_text())["source"] == str(source)


def test_the_optimizer_is_fresh(tiny_run: MakeRun, exported: Path) -> None:
    run = tiny_run(**started_from(exported))
    train(run)
    moments = {name: value for name, value in run.tensors().items() if not name.startswith("model.")}
    # After one update from zero: exp_avg = 0.1 g and exp_avg_sq = 0.05 g squared (betas 0.9, 0.95).
    for name in (name for name in moments if name.startswith("exp_avg.")):
        squared = moments[name.replace("exp_avg.", "exp_avg_sq.")]
        torch.testing.assert_close(squared, 0.05 * (moments[name] / 0.1).square())


def test_resume_never_reads_the_weights_again(tiny_run: MakeRun, exported: Path) -> None:
    phases = [{**ONE_STEP[0], "samples": 64}]
    run = tiny_run(**{**started_from(exported), "phases": phases})
    with pytest.raises(StoppedEarly):
        train(run, steps=2)
    shutil.rmtree(exported)
    other = tiny_run(**{**started_from(exported.with_name("other")), "phases": phases})
    with pytest.raises(UserError, match=r"model\.weights was .*exported, now .*other"):
        train(other)
    train(tiny_run(**{**started_from(exported), "phases": phases}))
    assert run.last_manifest()["progress"]["samples_seen"] == 64


def test_other_weights_before_the_first_checkpoint_are_noticed(
    tiny_run: MakeRun, data_set: Path, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny_run(**started_from(exported))
    with monkeypatch.context() as lost:
        lost.setattr(trainer.TrainingLoop, "run", lost_before_a_checkpoint)
        with pytest.raises(KeyboardInterrupt):
            train(run)
    export_some(data_set, exported, seed=6)
    with pytest.raises(UserError, match=r"is not what .* began with; restore these weights"):
        train(run)
    export_some(data_set, exported)
    train(run)


def test_sizes_are_resampled(tiny_run: MakeRun, data_set: Path, exported: Path) -> None:
    spec, state = import_openclip(exported)
    run = tiny_run(**started_from(exported, image_size=48, patch_size=16))
    train(run)
    larger = preset(
        "vit_micro_p8",
        image_size=48,
        patch_size=16,
        vocab_size=spec.text.vocab_size,
        context_length=16,
    )
    wanted = resample_state(state, spec, larger)
    assert wanted["visual.conv1.weight"].shape == (64, 3, 16, 16)
    assert_weights(run, wanted)


def test_parameter_that_the_weights_lack_keeps_its_initial_value(tiny_run: MakeRun, exported: Path) -> None:
    run = tiny_run(**started_from(exported), loss={"kind": "sigmoid"})
    train(run)
    _, state = import_openclip(exported)
    assert_weights(run, {**state, "logit_bias": torch.tensor([-10.0])})


def test_weights_that_do_not_fit_are_refused(tiny_run: MakeRun, data_set: Path, tmp_path: Path) -> None:
    wide = export_some(data_set, tmp_path / "wide", name="vit_tiny_p8")
    long = export_some(data_set, tmp_path / "long", context_length=20)
    other = tmp_path / "other"
    words = tiny_tokenizer()
    spec = preset("vit_micro_p8", vocab_size=words.vocab_size, context_length=words.context_length)
    export_openclip(build_model(spec), spec, other, tokenizer=words)
    lines = (data_set / "vocab.txt").read_text().splitlines()
    (tmp_path / "swapped.txt").write_text("\n".join([*lines[:-2], lines[-1], lines[-2]]) + "\n")
    tokenizer = load_tokenizer("wordpiece", str(tmp_path / "swapped.txt"), 16)
    spec = preset("vit_micro_p8", vocab_size=tokenizer.vocab_size, context_length=16)
    export_openclip(build_model(spec), spec, tmp_path / "swapped", tokenizer=tokenizer)
    for number, (source, message) in enumerate(
        (
            (wide, "embed_dim is 128 there, 64 in the job; vision.width is 128 there, 64 in the job"),
            (long, "text.context_length is 20 there, 16 in the job"),
            (other, f"text.vocab_size is {words.vocab_size} there"),
            (tmp_path / "swapped", "was trained with another vocabulary"),
            (tmp_path / "nowhere", "neither a run, nor a checkpoint, nor an OpenCLIP directory"),
        )
    ):
        with pytest.raises(UserError, match=message):
            train(tiny_run(f"run{number}", **started_from(source)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy",
    [
        "fsdp",
        pytest.param("ddp", marks=pytest.mark.long),
        pytest.param("zero1", marks=pytest.mark.long),
        pytest.param("zero3", marks=pytest.mark.long),
        pytest.param("fairscale_oss", marks=pytest.mark.long),
    ],
)
def test_two_processes_start_from_the_same_weights(strategy: str, tiny_run: MakeRun, exported: Path) -> None:
    run = tiny_run(**started_from(exported), loss={"kind": "sigmoid"})
    done = run.train(f"sharding.strategy={strategy}", processes=2)
    assert done.returncode == 0, done.stderr
    _, state = import_openclip(exported)
    assert_weights(run, {**state, "logit_bias": torch.tensor([-10.0])})
