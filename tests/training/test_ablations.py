"""A run with masked captions and reconstruction: it learns both, resumes, and exports as any other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.stop_at import StopAt
from support.tiny_run import TinyRun

from flipscale.config import load_job
from flipscale.distributed.world import World
from flipscale.errors import StoppedEarly, UserError
from flipscale.interop.load_model import load_model
from flipscale.interop.openclip_export import export_openclip
from flipscale.models.inputs import Inputs
from flipscale.orchestration.segments.segment import Segment
from flipscale.orchestration.segments.stop_requests import StopRequests
from flipscale.runs.directory import RunDirectory, run_directory
from flipscale.runs.metrics import read_metrics
from flipscale.third_party import import_open_clip
from flipscale.training import trainer, update
from flipscale.training.check_job import check_job

MakeRun = Callable[..., TinyRun]
ALONE = World(0, 1, 0, 1, torch.device("cpu"))
DECODER = {"weight": 0.5, "width": 32, "layers": 2, "heads": 2}
MASKED = {
    "name": "masked",
    "samples": 800,
    "mask_ratio": 0.75,
    "text_mask_ratio": 0.5,
    "batch_size": 16,
    "base_lr": 0.05,
    "warmup": 64,
}
UNMASKED = {"name": "unmasked", "samples": 96, "mask_ratio": 0.0, "batch_size": 16, "base_lr": 0.002}
CHANGES: dict[str, Any] = {
    "phases": [MASKED, UNMASKED],
    "loss": {"reconstruction": DECODER},
    "logging": {"every": "1 steps", "tensorboard": False},
    "checkpoint": {"every": ["1h"], "keep_last": 2},
}


def train(run: TinyRun, stop: StopRequests | None = None) -> None:
    torch.set_num_threads(1)
    job = load_job(run.job)
    directory = run_directory(job)
    segment = Segment(directory, ALONE, stop or StopRequests(directory.stop_file), hang=job.hang)
    with segment.locked():
        trainer.train(job, check_job(job, 1), segment)


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


@pytest.mark.slow
def test_run_learns_both_resumes_to_the_bit_and_exports_without_the_decoder(
    tiny_run: MakeRun, tmp_path: Path
) -> None:
    straight, stopped = tiny_run("straight", **CHANGES), tiny_run("stopped", **CHANGES)
    train(straight)
    metrics = read_metrics(straight.output)
    masked = [m for m in metrics if m.phase == "masked"]
    assert all("reconstruction" in m.scalars for m in masked)
    assert not any("reconstruction" in m.scalars for m in metrics if m.phase == "unmasked")
    contrastive = [m.scalars["loss"] - 0.5 * m.scalars["reconstruction"] for m in masked]
    reconstruction = [m.scalars["reconstruction"] for m in masked]
    assert mean(reconstruction[-10:]) < 0.95 * mean(reconstruction[:10])
    assert mean(contrastive[-10:]) < 0.95 * mean(contrastive[:10])

    with pytest.raises(StoppedEarly):
        train(stopped, StopAt(RunDirectory(stopped.output), 21))
    train(stopped)
    assert stopped.weights() == straight.weights()
    assert stopped.metrics() == straight.metrics()
    assert "exp_avg_sq.reconstruction.mask_token" in straight.weights()

    trained = load_model(straight.output, ALONE)
    export_openclip(trained.model, trained.model.spec, tmp_path / "export", tokenizer=trained.tokenizer)
    stock = import_open_clip().create_model(f"local-dir:{tmp_path / 'export'}").eval()
    assert not any("reconstruction" in name for name in stock.state_dict())
    floats = torch.randn(4, 3, 32, 32)
    texts = torch.randint(trained.tokenizer.vocab_size, (4, 16))
    with torch.no_grad():
        ours = trained.model(Inputs(floats, texts))
        assert (stock.encode_image(floats, normalize=True) - ours.images).abs().max() <= 1e-5
        assert (stock.encode_text(texts, normalize=True) - ours.texts).abs().max() <= 1e-5
    assert_the_decoder_had_no_gradient_in_the_unmasked_phase(straight)


def assert_the_decoder_had_no_gradient_in_the_unmasked_phase(run: TinyRun) -> None:
    """Assert that only the betas of the optimizer have changed the decoder's moments."""
    after = run.tensors()
    masked_end, _ = sorted((run.output / "checkpoints").glob("samples_*"))
    (run.output / "checkpoints" / "LATEST").write_text(masked_end.name + "\n")
    before = run.tensors()
    moments = [name for name in before if name.startswith("exp_avg.reconstruction.")]
    assert moments
    for name in moments:
        assert torch.allclose(after[name], before[name] * 0.9**6, rtol=1e-4, atol=1e-12), name


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"phases": [UNMASKED], "loss": {"reconstruction": {}}}, "needs hidden patches"),
        ({"loss": {"reconstruction": {"width": 30, "heads": 2}}}, "multiple of 4"),
        ({"loss": {"reconstruction": {"width": 64, "heads": 3}}}, "the 3 heads"),
        ({"loss": {"reconstruction": {"weight": 0}}}, "greater than 0"),
        ({"phases": [{**MASKED, "text_mask_ratio": 1.0}]}, "text_mask_ratio"),
        ({"phases": [{**MASKED, "text_mask": "some"}]}, "text_mask"),
    ],
)
def test_impossible_ablation_is_refused_in_one_sentence(
    tiny_run: MakeRun, changes: dict[str, Any], said: str
) -> None:
    run = tiny_run(**changes)
    with pytest.raises(UserError, match=said) as refused:
        load_job(run.job)
    assert "\n" not in str(refused.value)


def test_the_text_mask_is_that_of_its_kind(tiny_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text tower of the run reads half of the slots, and `prioritised` loses no token."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    gradients = update.accumulate_gradients

    def spy(model: Any, inputs: Any, *rest: Any) -> dict[str, torch.Tensor]:
        seen.append((inputs.texts, inputs.keep_tokens))
        return gradients(model, inputs, *rest)

    monkeypatch.setattr(update, "accumulate_gradients", spy)
    for kind in ("prioritised", "random"):
        phase = {**MASKED, "samples": 64, "warmup": 0, "text_mask": kind}
        train(tiny_run(kind, **{**CHANGES, "phases": [phase]}))
    lost = []
    for tokens, keep in seen:
        assert keep.shape == (16, 8)
        hidden = torch.ones_like(tokens, dtype=torch.bool).scatter_(1, keep, False)
        few = (tokens != 0).sum(dim=1) <= 8
        lost.append(int(((tokens != 0) & hidden)[few].sum()))
    assert sum(lost[:4]) == 0
    assert sum(lost[4:]) > 0
