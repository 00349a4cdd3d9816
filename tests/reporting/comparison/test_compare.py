"""Comparisons of models: the scores of `flipscale eval`, the cost of training, and the page."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from playwright.sync_api import Browser
from support.browser import opened
from support.reported_models import ALONE, Models, evaluation
from support.run_in_files import RunInFiles
from typer.testing import CliRunner

from flipscale.cli import compare as compare_command
from flipscale.cli.app import app
from flipscale.cli.compare import CompareOptions
from flipscale.config import Evaluation
from flipscale.errors import UserError
from flipscale.evaluation.evaluate import evaluate
from flipscale.evaluation.features import Encoder
from flipscale.evaluation.nearest_captions import examples, nearest_captions
from flipscale.interop.load_model import load_model
from flipscale.interop.loaded_model import LoadedModel
from flipscale.interop.openclip_export import export_openclip
from flipscale.models.of_job import model_spec, phase_specs
from flipscale.planning.plan import plan_job
from flipscale.reporting.comparison.compare import compare
from flipscale.reporting.comparison.loading import load_compared_model
from flipscale.reporting.comparison.model_names import resolve_models, sets_of
from flipscale.reporting.comparison.page import compare_page
from flipscale.reporting.comparison.published import imagenet_set
from flipscale.reporting.comparison.results import Comparison
from flipscale.reporting.comparison.training_cost import flops_at, gpu_hours_at
from flipscale.reporting.page.markdown_renderer import to_markdown
from flipscale.runs.directory import RunDirectory, recorded_job


@pytest.fixture(scope="module")
def exported(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an export of the masked run, with its provenance."""
    trained = load_model(models.masked, ALONE)
    out = tmp_path_factory.mktemp("exported") / "model"
    assert trained.job is not None
    phases = [phase.model_dump(mode="json") for phase in trained.job.phases]
    provenance = {"samples_seen": trained.samples_seen, "phases": phases}
    spec = trained.model.spec
    export_openclip(trained.model, spec, out, tokenizer=trained.tokenizer, provenance=provenance)
    return out


@pytest.fixture(scope="module")
def page(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the page of two runs and a stock model, on the sets of the runs' jobs."""
    out = tmp_path_factory.mktemp("compared")
    sources = [str(models.masked), str(models.unmasked), f"local-dir:{models.stock}"]
    compare_command.compare(CompareOptions(models=sources, out=out))
    return out / "compare.html"


def compared(sources: list[str]) -> Comparison:
    named = resolve_models(sources)
    return compare(named, sets_of(named), 64, ALONE, lambda what: None)


def encoder(trained: LoadedModel) -> Encoder:
    return Encoder(trained.model, trained.tokenizer, trained.model.spec.vision.image_size, ALONE)


@pytest.mark.slow
@pytest.mark.parametrize("width", [1400, 400])
def test_page_opens_from_disk_with_every_plot(page: Path, browser: Browser, width: int) -> None:
    with opened(browser, page, width) as shown:
        assert shown.complaints == []
        assert [url for url in shown.requests if not url.startswith(("file:", "data:"))] == []
        canvases = shown.page.locator(".canvas")
        assert canvases.count() == 3 + 6 + 3  # scores; against cost; published
        for number in range(canvases.count()):
            traces = canvases.nth(number).locator(".scatterlayer .trace path")
            assert traces.count() > 0
            box = canvases.nth(number).bounding_box()
            assert box is not None
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= width
        assert shown.page.evaluate("document.documentElement.scrollWidth") <= width
        assert shown.page.locator(".card").count() == 6
        assert shown.page.locator("img").count() == 6 * 2  # whole, and under the only mask


@pytest.mark.slow
def test_click_on_heading_sorts_by_numbers(page: Path, browser: Browser) -> None:
    with opened(browser, page, 1400) as shown:
        table = shown.page.locator("#published-models table")
        heading = table.locator("th", has_text="samples seen")
        for expected, backwards in (("descending", True), ("ascending", False)):
            heading.locator("button").click()
            assert heading.get_attribute("aria-sort") == expected
            cells = table.locator("tbody tr td:nth-child(5)").evaluate_all(
                "cells => cells.map(cell => Number(cell.dataset.order))"
            )
            assert cells == sorted(cells, reverse=backwards)
        legend = shown.page.locator("#published-models .legend button")
        legend.first.click()
        assert legend.first.get_attribute("aria-pressed") == "false"


def test_scores_are_those_of_evaluation(models: Models, page: Path, data_set: Path) -> None:
    document = json.loads(page.with_suffix(".json").read_text())
    assert [model["kind"] for model in document["models"]] == ["run", "run", "OpenCLIP"]
    trained = load_model(models.unmasked, ALONE)
    expected = evaluate(encoder(trained), Evaluation.model_validate(evaluation(data_set)), samples_seen=128)
    model = document["models"][1]
    assert model["document"] == json.loads(json.dumps(expected))
    scores = {(score["set"], score["metric"]): score["value"] for score in model["scores"]}
    assert scores["scenes", "top1"] == expected["zero_shot"]["scenes"]["top1"]
    ranks = expected["retrieval"]["captions"]
    assert scores["captions", "text_to_image_R@1"] == ranks["text_to_image"]["R@1"]
    for difference in document["differences"]:
        assert difference["low"] <= difference["value"] <= difference["high"]
    assert len(document["differences"]) == 3 * 3  # pairs x metrics


def test_run_and_export_and_stock_open_clip_do_not_differ(models: Models, exported: Path) -> None:
    comparison = compared([str(models.masked), str(exported), f"local-dir:{exported}"])
    labels = [result.model.label for result in comparison.results]
    assert labels == ["masked", str(exported), f"local-dir:{exported}"]
    run, export, stock = (result.model for result in comparison.results)
    assert (run.samples_seen, run.training_flops) == (export.samples_seen, export.training_flops)
    assert run.training_flops
    assert (stock.samples_seen, stock.training_flops) == (None, None)
    for difference in comparison.differences:
        assert (difference.value, difference.clear) == (0.0, False)
    ranks = [[ranked.rank for ranked in result.nearest] for result in comparison.results]
    assert ranks[0] == ranks[1] == ranks[2]


def test_models_are_drawn_among_published_ones_only_on_imagenet(models: Models) -> None:
    comparison = compared([str(models.masked)])
    assert imagenet_set(comparison) is None
    text = to_markdown(compare_page(comparison))
    assert "so they are not drawn here" in text
    scores = comparison.results[0].evaluated.document["zero_shot"]["scenes"]
    chosen = comparison.sets.zero_shot["scenes"].model_copy(update={"classnames": "imagenet"})
    comparison.sets.zero_shot["scenes"] = chosen
    scores["classes"], scores["samples"], scores["skipped"] = 1000, 49_998, 2
    assert imagenet_set(comparison) == "scenes"
    assert "the models of this page, scored on scenes" in to_markdown(compare_page(comparison))
    scores["samples"] = 10_000  # ImageNet-V2 has the same class names
    assert imagenet_set(comparison) is None


def test_training_cost_follows_from_job_and_ledger(models: Models, tmp_path: Path) -> None:
    trained = load_model(models.masked, ALONE)
    job = recorded_job(RunDirectory(models.masked))
    shapes = phase_specs(model_spec(job, trained.tokenizer), job)
    first, tuned = plan_job(job).phases
    found = {samples: flops_at(job.phases, shapes, samples) for samples in (48, 96, 112, 128, 10**9)}
    # The plan's shape has the preset's vocabulary, which no FLOP depends on.
    assert found[96] == first.flops
    assert found[128] == found[10**9] == first.flops + tuned.flops
    assert found[48] == first.flops / 2
    assert found[112] == first.flops + tuned.flops / 2

    run = RunInFiles.new(tmp_path / "run")
    assert gpu_hours_at(RunDirectory(run.path), 100) is None
    run.segment(samples_from=0, samples_to=400, gpu_seconds=7200)
    run.segment(
        samples_from=400, samples_to=400, gpu_seconds=3600
    )  # it gained no samples, and still took GPU time
    run.segment(samples_from=400, samples_to=800, gpu_seconds=3600)
    hours = {samples: gpu_hours_at(RunDirectory(run.path), samples) for samples in (100, 400, 600, 800)}
    assert hours == pytest.approx({100: 0.5, 400: 2.0, 600: 3.5, 800: 4.0})
    assert gpu_hours_at(RunDirectory(run.path), 900) is None  # trained in the current segment
    run.segment(samples_from=800, samples_to=500, gpu_seconds=0)  # rolled back: the newest was damaged
    run.segment(samples_from=500, samples_to=800, gpu_seconds=3600)
    hours = {samples: gpu_hours_at(RunDirectory(run.path), samples) for samples in (400, 650, 800)}
    assert hours == pytest.approx({400: 2.0, 650: 4.5, 800: 5.0})


def test_nearest_captions_have_highest_similarity(models: Models, data_set: Path) -> None:
    trained = load_model(models.masked, ALONE)
    shards = str(data_set / "val/00000.tar")
    shown = examples(shards, 4, trained.model.spec.vision.image_size)
    found = nearest_captions(encoder(trained), shards, 4)
    texts = list(dict.fromkeys(c for e in examples(shards, 16, 32) for c in e.captions))
    with torch.no_grad():
        images = trained.model.encode_image(torch.stack([torch.tensor(e.pixels) for e in shown]))
        scores = images @ trained.model.encode_text(trained.tokenizer(texts)).T
    for row, example, neighbours in zip(scores, shown, found, strict=True):
        assert neighbours.captions == example.captions
        assert neighbours.pool == len(texts)
        own = max(float(row[texts.index(caption)]) for caption in example.captions)
        assert neighbours.rank == 1 + int((row > own + 1e-6).sum())
        best = [near.similarity for near in neighbours.nearest]
        assert best == pytest.approx(row.sort(descending=True).values[:3].tolist(), abs=1e-5)


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (["{masked}", "{masked}/checkpoints/samples_000000000128"], "are the same model"),
        (["{masked}", "{masked}/"], "are the same model"),
        (["{root}"], "neither a run, nor a checkpoint, nor an OpenCLIP directory"),
        (["nowhere"], "nor a model of OpenCLIP; nearest names"),
        (["local-dir:{stock}"], "give --zero-shot, --retrieval or --sets"),
    ],
)
def test_wrong_input_is_reported_before_loading(
    models: Models, tmp_path: Path, sources: list[str], message: str
) -> None:
    named = [s.format(masked=models.masked, stock=models.stock, root=tmp_path) for s in sources]
    with pytest.raises(UserError) as caught:
        compare_command.compare(CompareOptions(models=named, out=tmp_path / "out"))
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_sets_of_command_line_replace_those_of_runs(models: Models, data_set: Path, tmp_path: Path) -> None:
    names = ["--classnames", str(data_set / "classnames.txt"), "--metric", "mean_per_class"]
    sets = ["--zero-shot", str(data_set / "test/00000.tar"), *names]
    done = CliRunner().invoke(app, ["compare", str(models.masked), "--out", str(tmp_path / "out"), *sets])
    assert done.exit_code == 0, done.output
    document = json.loads((tmp_path / "out/compare.json").read_text())
    (scores,) = (model["scores"] for model in document["models"])
    assert [(score["set"], score["metric"]) for score in scores] == [("zero_shot", "mean_per_class")]


def test_checkpoint_may_have_any_name(models: Models, tmp_path: Path) -> None:
    copy = tmp_path / "run" / "checkpoints" / "best"
    shutil.copytree(models.masked / "checkpoints" / "samples_000000000128", copy)
    (named,) = resolve_models([str(copy)])
    assert named.label == "run at 128"
    (copy / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="is damaged; name another checkpoint"):
        resolve_models([str(copy)])


def test_initial_weights_of_others_are_reported(models: Models, tmp_path: Path) -> None:
    trained = load_model(models.masked, ALONE)
    provenance = {"samples_seen": 128, "phases": [], "weights": "out/clip"}
    out, spec = tmp_path / "tuned", trained.model.spec
    export_openclip(trained.model, spec, out, tokenizer=trained.tokenizer, provenance=provenance)
    tuned, _ = load_compared_model(resolve_models([str(out)])[0], ALONE)
    assert tuned.from_weights
    assert tuned.remark.startswith("it started from out/clip; samples, FLOPs and GPU-hours are of its own")
    plain, _ = load_compared_model(resolve_models([str(models.masked)])[0], ALONE)
    assert (plain.from_weights, plain.remark) == (False, "")


def test_run_without_checkpoint_is_named(tmp_path: Path) -> None:
    run = RunInFiles.new(tmp_path / "run")
    with pytest.raises(UserError, match="has no checkpoint yet"):
        resolve_models([str(run.path)])


@pytest.mark.parametrize("name", ["samples_good", "samples_²", "samples_999999999999 (copy)"])
def test_directory_of_another_name_is_not_the_newest_checkpoint(tmp_path: Path, name: str) -> None:
    run = RunInFiles.new(tmp_path / "run").checkpoint(160)
    shutil.copytree(run.path / "checkpoints/samples_000000000160", run.path / "checkpoints" / name)
    (model,) = resolve_models([str(run.path)])
    assert model.identity == str(run.path / "checkpoints/samples_000000000160")
