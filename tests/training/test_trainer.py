"""Training through its phases, in this process: what is logged, saved and refused."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.stop_at import StopAt
from support.tiny_run import TinyRun

from flipscale.config import load_job
from flipscale.data.shards.indexing import build_index
from flipscale.data.synthetic.samples import make_sample
from flipscale.data.text.tokenizer import WordPieceTokenizer
from flipscale.data.text.vocabulary import SPECIAL_TOKENS
from flipscale.distributed.world import World
from flipscale.errors import RunError, StoppedEarly, UserError
from flipscale.losses.contrastive import contrastive_loss
from flipscale.models.flip import FLIP, build_model
from flipscale.models.inputs import Inputs
from flipscale.models.presets import preset
from flipscale.orchestration.checks import node as node_check
from flipscale.orchestration.segments.segment import Segment
from flipscale.orchestration.segments.stop_requests import StopRequests
from flipscale.progress import Progress
from flipscale.runs.audit import audit
from flipscale.runs.directory import RunDirectory, existing_run, run_directory
from flipscale.runs.ledger import read_ledger
from flipscale.runs.metrics import read_metrics
from flipscale.training import trainer, update
from flipscale.training.check_job import check_job
from flipscale.training.gradients import accumulate_gradients

MakeRun = Callable[..., TinyRun]
ALONE = World(0, 1, 0, 1, torch.device("cpu"))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def train(run: TinyRun, *overrides: str, stop: StopRequests | None = None) -> Progress:
    job = load_job(run.job, overrides)
    directory = run_directory(job)
    budget = check_job(job, 1)
    segment = Segment(
        directory,
        ALONE,
        stop or StopRequests(directory.stop_file),
        hang=job.hang,
        checks_nodes=job.cluster.check_node,
    )
    with segment.locked():
        return trainer.train(job, budget, segment)


@pytest.mark.parametrize(
    ("capability", "precision", "warned"),
    [("AVX2", "bf16", True), ("AVX2", "fp32", False), ("AVX512", "bf16", False)],
)
def test_cpu_that_is_slow_in_bf16_is_reported(
    tiny_run: MakeRun,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capability: str,
    precision: str,
    warned: bool,
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    phase = dict(name="short", samples=32, mask_ratio=0.5, batch_size=16, base_lr=0.01)
    train(tiny_run(phases=[phase], sharding={"precision": precision}))
    assert ("set sharding.precision to fp32" in caplog.text) == warned


def test_both_phases_run_to_the_exact_budget(tiny_run: MakeRun) -> None:
    run = tiny_run()
    progress = train(run)
    assert progress.samples_seen == 792
    metrics = read_metrics(run.output)
    assert [m.phase for m in metrics].count("unmasked") > 0
    assert metrics[-1].samples == 792
    assert metrics[-1].step == 50
    by_samples = {m.samples: m for m in metrics}
    assert by_samples[48].scalars["lr"] == pytest.approx(0.02 * 16 / 256 * 48 / 64)
    assert by_samples[640].phase == "masked"
    assert metrics[-1].scalars["lr"] < 0.1 * 0.002 * 16 / 256
    # The end of each phase is kept permanently, in addition to the newest two.
    kept = {int(path.name.split("_")[1]): path for path in (run.output / "checkpoints").glob("samples_*")}
    assert {640, 792} <= set(kept)
    manifest = json.loads((kept[640] / "manifest.json").read_text())
    assert manifest["permanent"]
    assert manifest["progress"]["optimizer_steps"] == 40
    assert run.last_manifest()["progress"]["optimizer_steps"] == 10  # fresh_optimizer
    assert audit(RunDirectory(run.output)).proven


def test_phase_may_have_micro_batches_of_its_own(tiny_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pairs of one phase are taken by 5, fewer than those of `sharding`, which the other phase takes."""
    calls: list[int | None] = []

    def counted(model: Any, inputs: Inputs, loss: Any, micro_batch: int | None) -> Any:
        calls.append(micro_batch)
        return accumulate_gradients(model, inputs, loss, micro_batch)

    monkeypatch.setattr(update, "accumulate_gradients", counted)
    masked = dict(name="masked", samples=32, mask_ratio=0.5, batch_size=16, base_lr=0.01)
    unmasked = dict(name="unmasked", samples=16, mask_ratio=0.0, batch_size=16, base_lr=0.01, micro_batch=5)
    whole = tiny_run("whole", phases=[masked, {**unmasked, "micro_batch": None}])
    parts = tiny_run("parts", phases=[masked, unmasked], sharding={"micro_batch": 8})
    train(whole)
    train(parts)
    assert calls == [None, None, None, 8, 8, 5]
    assert parts.metrics()[-1]["loss"] == pytest.approx(whole.metrics()[-1]["loss"], rel=1e-5)


def test_a_finished_run_trained_again_does_nothing(tiny_run: MakeRun) -> None:
    run = tiny_run()
    train(run)
    weights, metrics = run.weights(), run.metrics()
    assert train(run).samples_seen == 792
    assert (run.weights(), run.metrics()) == (weights, metrics)
    assert [line.reason for line in read_ledger(run.output)] == ["done", "done"]


@pytest.mark.slow
def test_the_loss_begins_at_the_log_of_the_batch() -> None:
    """It takes a preset of the paper: in towers as narrow as the tiny ones random features spread further."""
    batch = 8
    model = build_model(preset("vit_b16", vocab_size=200))
    samples = [make_sample(0, "train", number, 224) for number in range(batch)]
    images = torch.stack([pil_to_tensor(Image.open(io.BytesIO(jpeg))) for _, _, jpeg in samples])
    words = sorted({word for _, caption, _ in samples for word in caption.split()})
    tokenizer = WordPieceTokenizer([*SPECIAL_TOKENS, *words])
    with torch.no_grad():
        image_features, text_features, scale, *_ = model(
            Inputs(images, tokenizer([caption for _, caption, _ in samples]))
        )
        assert abs(float(contrastive_loss(image_features, text_features, scale)) - math.log(batch)) < 0.05


def pil_to_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


@pytest.mark.slow
def test_any_stop_step_gives_the_same_end(tiny_run: MakeRun, straight: TinyRun) -> None:
    for request, steps in {1: 2, 7: 8, 10: 11, 40: 40, 41: 42}.items():
        run = tiny_run(f"stopped{steps}")
        with pytest.raises(StoppedEarly, match="same command again"):
            train(run, stop=StopAt(RunDirectory(run.output), request))
        assert run.last_manifest()["progress"]["samples_seen"] == steps * 16
        train(run)
        assert run.weights() == straight.weights()
        assert run.metrics() == straight.metrics()


@pytest.mark.slow
def test_damaged_checkpoints_roll_the_run_back_and_it_still_ends_the_same(
    tiny_run: MakeRun, straight: TinyRun
) -> None:
    damaged = tiny_run("damaged")
    with pytest.raises(StoppedEarly):
        train(damaged, stop=StopAt(RunDirectory(damaged.output), 30))
    newest = max((damaged.output / "checkpoints").glob("samples_*"))
    (newest / "manifest.json").unlink()
    train(damaged)
    assert damaged.weights() == straight.weights()
    assert damaged.metrics() == straight.metrics()
    ledger = read_ledger(damaged.output)
    assert [line.reason for line in ledger] == ["stopped", "rolled_back", "done"]
    assert sum(line.samples_to - line.samples_from for line in ledger) == 792
    assert audit(RunDirectory(damaged.output)).proven


def test_steps_that_are_not_finite_are_skipped_counted_and_end_the_run(
    tiny_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = FLIP.forward
    calls = 0

    def spoiled(self: FLIP, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        features = forward(self, *args, **kwargs)
        broken = calls in (5, 6) or calls > 12
        if not broken or features.images is None:
            return features
        return features._replace(images=features.images * math.nan)

    monkeypatch.setattr(FLIP, "forward", spoiled)
    run = tiny_run(logging={"every": "1 steps", "tensorboard": False})
    with pytest.raises(RunError, match="not finite for the last 20 steps"):
        train(run)
    metrics = read_metrics(run.output)
    assert [m.scalars["skipped_steps"] for m in metrics[:8]] == [0, 0, 0, 0, 1, 2, 2, 2]
    assert math.isfinite(metrics[7].scalars["loss"])
    assert read_ledger(run.output)[-1].reason == "non_finite"


def test_unusable_samples_are_replaced_recorded_and_audited(
    tiny_run: MakeRun, data_set: Path, tmp_path: Path
) -> None:
    shard = bytearray((data_set / "train" / "00001.tar").read_bytes())
    for at in range(0, len(shard) - 512, 512):  # spoil the header of every seventh image
        if shard[at : at + 3] == b"\xff\xd8\xff" and (at // 512) % 7 == 0:
            shard[at : at + 64] = bytes(64)
    copies = tmp_path / "shards"
    copies.mkdir()
    for number in range(3):
        name = f"0000{number}.tar"
        (copies / name).write_bytes(shard if number == 1 else (data_set / "train" / name).read_bytes())
    run = tiny_run(data={"train": str(copies / "{00000..00002}.tar")})
    assert train(run).samples_seen == 792
    report = audit(RunDirectory(run.output))
    assert report.proven
    assert 0 < report.unusable < 50
    assert report.replaced >= report.unusable
    records = [json.loads(line) for line in (run.output / "quarantine.jsonl").read_text().splitlines()]
    assert len({(r["shard"], r["ordinal"]) for r in records}) == len(records) == report.unusable
    assert all(r["key"] != "?" and r["path"].endswith("00001.tar") for r in records)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["seed=1"], "seed was 0, now 1"),
        (["data.lanes=4"], "data.lanes was 8, now 4"),
        (["phases.0.base_lr=0.5"], r"phases\.0\.base_lr was 0\.02, now 0\.5"),
        (["model.image_size=64"], "image_size"),
        (["name=other"], "holds the run of the job 'tiny', not 'other'"),
    ],
)
def test_a_changed_job_is_refused_by_name(tiny_run: MakeRun, overrides: list[str], message: str) -> None:
    run = tiny_run()
    with pytest.raises(StoppedEarly):
        train(run, stop=StopAt(RunDirectory(run.output), 2))
    with pytest.raises(UserError, match=message):
        train(run, *overrides)


def test_rate_of_a_later_phase_and_settings_without_effect_may_change(tiny_run: MakeRun) -> None:
    run = tiny_run()
    with pytest.raises(StoppedEarly):
        train(run, stop=StopAt(RunDirectory(run.output), 2))
    assert (
        train(run, "phases.1.base_lr=0.001", "data.workers=0", "checkpoint.keep_last=5").samples_seen == 792
    )


def test_other_data_and_another_vocabulary_are_refused(
    tiny_run: MakeRun, data_set: Path, tmp_path: Path
) -> None:
    run = tiny_run()
    with pytest.raises(StoppedEarly):
        train(run, stop=StopAt(RunDirectory(run.output), 2))
    other = tmp_path / "other.txt"
    other.write_text((data_set / "vocab.txt").read_text().replace("star", "moon"))
    with pytest.raises(UserError, match="vocabulary is not the one"):
        train(run, f"data.tokenizer.vocab={other}")
    fewer = f"data.train={data_set}/train/{{00000..00001}}.tar"
    with pytest.raises(UserError, match="shards are not those"):
        train(run, fewer)
    build_index(f"{data_set}/train/{{00000..00002}}.tar", tmp_path / "index")
    with pytest.raises(UserError, match="is of 3 shards"):
        train(run, fewer, f"data.index={tmp_path / 'index'}")


@pytest.mark.slow
def test_run_resumes_with_moved_shards(
    tiny_run: MakeRun, straight: TinyRun, data_set: Path, tmp_path: Path
) -> None:
    moved = tiny_run("moved")
    with pytest.raises(StoppedEarly):
        train(moved, stop=StopAt(RunDirectory(moved.output), 7))
    shutil.copytree(data_set / "train", tmp_path / "elsewhere")
    train(moved, f"data.train={tmp_path}/elsewhere/{{00000..00002}}.tar")
    assert moved.weights() == straight.weights()


def test_a_missing_shard_is_named(tiny_run: MakeRun, tmp_path: Path) -> None:
    run = tiny_run(data={"train": str(tmp_path / "{00000..00002}.tar")})
    with pytest.raises(UserError, match=r"00000\.tar and 2 more"):
        train(run)


def test_a_tokenizer_of_the_other_family_is_refused(tiny_run: MakeRun) -> None:
    with pytest.raises(UserError, match="clip_bpe"):
        train(tiny_run(model="clip_micro_p8"))


def test_directory_that_is_not_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run directory"):
        existing_run(tmp_path)


def test_broken_node_ends_the_start_and_is_named(tiny_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tiny_run()
    train(run, "cluster.check_node=true", "phases.0.samples=64", "phases.0.warmup=0")  # this machine is whole
    slow = dataclasses.replace(node_check._PRODUCT_CPU, limit=1e9)
    monkeypatch.setattr(node_check, "_PRODUCT_CPU", slow)
    broken = tiny_run("broken")
    with pytest.raises(RunError, match="failed its check"):
        train(broken, "cluster.check_node=true")
    (line,) = read_ledger(broken.output)
    assert (line.reason, line.samples_to) == ("bad_node", 0)
    assert line.suspects == (ALONE.place.node,)
