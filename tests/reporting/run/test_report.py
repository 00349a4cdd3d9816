"""The page of a run, in each state of the run."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from playwright.sync_api import Browser
from support.browser import opened
from support.rehearsals import made_up_rehearsal
from support.reported_models import ALONE, Models
from support.run_in_files import RunInFiles

from flipscale.budget import Budget
from flipscale.cli.report import report
from flipscale.errors import UserError
from flipscale.models.masking import visible_patches
from flipscale.reporting.page.blocks import Gallery, Note, Page
from flipscale.reporting.page.html_renderer import to_html
from flipscale.reporting.page.markdown_renderer import to_markdown
from flipscale.reporting.run.facts import gather_facts
from flipscale.reporting.run.report import run_document, run_page
from flipscale.reporting.run.seen_samples import read_seen_samples
from flipscale.runs.directory import RunDirectory, recorded_job
from flipscale.training.data import open_data


def page_of(path: Path) -> Page:
    return run_page(gather_facts(RunDirectory(path), lambda what: None))


def missing(page: Page) -> dict[str, str]:
    """Return what the page says it cannot show, by section."""
    return {
        section.title: block.text
        for section in page.sections
        for block in section.blocks
        if isinstance(block, Note) and block.missing
    }


def contents(directory: Path) -> dict[str, str]:
    """Return the digest of every file."""
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.slow
@pytest.mark.parametrize("width", [1400, 400])
def test_finished_run_is_shown_completely(
    models: Models, tmp_path: Path, browser: Browser, width: int, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(models.masked)
    report(models.masked, tmp_path / "out")
    assert contents(models.masked) == before
    assert capsys.readouterr().out.strip() == str(tmp_path / "out/report.html")
    with opened(browser, tmp_path / "out/report.html", width) as shown:
        assert shown.complaints == []
        assert [url for url in shown.requests if not url.startswith(("file:", "data:"))] == []
        page = shown.page
        assert page.locator(".missing").count() == 0
        canvases = page.locator(".canvas")
        assert canvases.count() == 10
        for number in range(canvases.count()):
            assert canvases.nth(number).locator(".scatterlayer .trace").count() > 0
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.locator("img").count() == 6 * 2 + 6 + 6  # masked and whole, whole, retrieval


def test_document_has_content_of_page(models: Models) -> None:
    facts = gather_facts(RunDirectory(models.masked), lambda what: None)
    document = json.loads(json.dumps(run_document(facts)))
    assert document["status"]["samples"] == 128
    assert [record["samples_seen"] for record in document["evaluations"]] == [64, 96, 128]
    assert document["checkpoints"][-1]["samples"] == 128
    assert document["log_lines"] == 8
    text = to_markdown(run_page(facts))
    assert "| scenes | top-1 |" in text
    assert "samples\\_000000000128 (latest)" in text


def test_images_and_masks_are_those_of_training(models: Models) -> None:
    run = RunDirectory(models.masked)
    job = recorded_job(run)
    samples = read_seen_samples(run, job, 128, each=3)
    budget = Budget.of(job.phases, job.data.lanes)
    trained = {
        position: image
        for batch in open_data(job, run.path, budget, ALONE).stream.batches(0)
        for position, image in zip(batch.positions.tolist(), batch.images, strict=True)
    }
    assert [sample.position for sample in samples] == [0, 47, 95, 96, 111, 127]
    for sample in samples:
        assert np.array_equal(sample.pixels, trained[sample.position].numpy())
    keep = visible_patches(torch.tensor([47]), 16, 0.5, job.seed)
    assert keep is not None
    assert samples[1].visible == tuple(keep[0].tolist())
    assert samples[3].visible is None


def test_phase_of_another_resolution_is_shown_in_it(models: Models) -> None:
    run = RunDirectory(models.masked)
    job = recorded_job(run)
    larger = job.phases[1].model_copy(update={"image_size": 64, "mask_ratio": 0.75})
    samples = read_seen_samples(run, job.model_copy(update={"phases": (job.phases[0], larger)}), 128, each=1)
    assert [sample.pixels.shape for sample in samples] == [(3, 32, 32), (3, 64, 64)]
    assert [(sample.grid, len(sample.visible or ())) for sample in samples] == [(4, 8), (8, 16)]


def test_hidden_patches_are_not_in_picture(models: Models) -> None:
    facts = gather_facts(RunDirectory(models.masked), lambda what: None)
    (gallery,) = [b for s in run_page(facts).sections[6:7] for b in s.blocks if isinstance(b, Gallery)]
    assert not isinstance(facts.seen_samples, str)
    sample = facts.seen_samples[0]
    source = gallery.cards[0].pictures[0].source
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))))
    for patch in range(16):
        row, column = divmod(patch, 4)
        part = image[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
        whole = sample.pixels.transpose(1, 2, 0)[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
        if patch in (sample.visible or ()):
            assert (part[..., 3] == 255).all()
            assert np.array_equal(part[..., :3], whole)
        else:
            assert not part.any()


def test_run_without_its_data_says_what_it_cannot_show(models: Models, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(models.masked, moved)
    job = moved / "job.yaml"
    data = recorded_job(RunDirectory(moved)).data.train.partition("/train/")[0]
    job.write_text(job.read_text().replace(data, str(tmp_path / "nowhere")))
    index = moved / "index/index.json"
    index.write_text(index.read_text().replace(data, str(tmp_path / "nowhere")))
    page = page_of(moved)
    assert "nowhere/train/00000.tar cannot be read" in missing(page)["What the model saw"]
    assert "nowhere/val/00000.tar is not a file" in missing(page)["Retrieval examples"]
    assert set(missing(page)) == {"What the model saw", "Retrieval examples"}


def test_run_that_has_not_begun_says_so_everywhere(tmp_path: Path) -> None:
    page = page_of(RunInFiles.new(tmp_path / "run").path)
    reasons = missing(page)
    assert reasons["Training"] == "No metrics were written yet; the first line comes after 10 steps."
    assert "set evaluation.every" in reasons["Evaluations"]
    assert "never started" in reasons["Segments"]
    assert "no committed checkpoint" in reasons["Checkpoints"]
    assert "names no retrieval set" in reasons["Retrieval examples"]
    assert "No training samples can be shown" in reasons["What the model saw"]
    to_html(page)


def test_ends_of_segments_are_named_and_marked(tmp_path: Path) -> None:
    run = RunInFiles.new(tmp_path / "run")
    day = "2026-01-01T0"
    run.segment(reason="preempted", started=f"{day}0:00:00+00:00", seconds=3600, samples_to=400)
    run.segment(reason="hang", started=f"{day}2:00:00+00:00", seconds=60, samples_from=400, samples_to=400)
    run.open_segment(started=f"{day}3:00:00+00:00", samples_from=400, samples_to=400, attempt="x")
    for step in range(1, 60):
        run.metrics(samples=8 * step, step=step, loss=3.0, images_per_second=10.0, data_wait_fraction=0.1)
    text = to_html(page_of(run.path))
    for word in ("preempted", "hang", "segment 0: preempted"):
        assert word in text
    assert "#c29a1c" in text.partition('id="training"')[2].partition("</section>")[0]


@pytest.mark.parametrize("known", [True, False])
def test_operations_are_shown_as_far_as_they_are_recorded(tmp_path: Path, known: bool) -> None:
    run = RunInFiles.new(tmp_path / "run")
    for step in range(1, 6):
        share = {"mfu": 0.3} if known else {}
        run.metrics(samples=8 * step, step=step, loss=3.0, images_per_second=10.0, tflops=93.6, **share)
    section = to_html(page_of(run.path)).partition('id="speed"')[2].partition("</section>")[0]
    assert "Each process computes 93.6 TFLOP/s of the model" in section
    assert ("30.0% of the peak of its GPU" in section) == known
    assert ("share of the GPU" in section) == known
    assert ("TFLOP/s of a process" in section) != known


def test_unusable_samples_are_counted_by_kind(tmp_path: Path) -> None:
    run = RunInFiles.new(tmp_path / "run")
    with open(run.path / "quarantine.jsonl", "w") as file:
        for number in range(30):
            reason = "not an image (SyntaxError)" if number % 3 else f"the image has only {number} x 4 pixels"
            record = {"shard": 0, "ordinal": number, "path": "a.tar", "key": f"k{number}", "reason": reason}
            file.write(json.dumps(record) + "\n")
    text = to_markdown(page_of(run.path))
    assert "| not an image (SyntaxError) | 20 | 66.7% |" in text
    assert "| the image has only N x N pixels | 10 | 33.3% |" in text
    assert text.count("| a.tar |") == 20


def test_long_run_is_thinned_and_says_so(tmp_path: Path) -> None:
    run = RunInFiles.new(tmp_path / "run")
    with open(run.path / "metrics.jsonl", "w") as file:
        for step in range(30_000):
            line = {"samples": step, "phase": "masked", "loss": step % 97 / 7, "lr": 1e-3}
            file.write(json.dumps({**line, "images_per_second": step % 13, "grad_norm": 1.0}) + "\n")
    page = page_of(run.path)
    text = to_html(page)
    assert "30,000 log lines" in text
    assert "thinned to at most 1,200 points" in text
    empty = len(to_html(Page("", "", [], [])))
    assert len(text) - empty < 600_000  # bytes in addition to plotly's own


def test_page_is_written_neither_into_run_nor_below_file(tmp_path: Path) -> None:
    run = RunInFiles.new(tmp_path / "run")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"file/report\.html cannot be written \(Not a directory\); name"):
        report(run.path, tmp_path / "file")
    with pytest.raises(UserError, match="is inside the run"):
        report(run.path, run.path / "report")
    with pytest.raises(UserError, match="is not a run directory"):
        report(tmp_path, None)


def test_rehearsal_is_shown_next_to_what_the_run_measured(tmp_path: Path):
    run = RunInFiles.new(tmp_path / "run")
    assert all(section.title != "Rehearsal" for section in page_of(run.path).sections)
    assert run_document(gather_facts(RunDirectory(run.path), lambda what: None))["rehearsal"] is None

    run.metrics(samples=8, images_per_second=10.0, mfu=0.31, peak_memory_gb=42.95)
    found = made_up_rehearsal(recorded_job(RunDirectory(run.path)))
    RunDirectory(run.path).rehearsal.write_text(json.dumps(asdict(found)))
    text = to_markdown(page_of(run.path))
    assert "masked | 256 | 42.9 GB | 44 GB | 3,385 | 312.0 ms | operations | 45.9% | 1" in text
    assert "The run itself, in its last log line: peak memory 43 GB, MFU 31.0%." in text
    assert "Compiled: 3 graphs, 0 graph breaks, 1 call that torch could not compile." in text
    assert "Not looked at: the rest." in text
    assert run_document(gather_facts(RunDirectory(run.path), lambda what: None))["rehearsal"] == asdict(found)

    assert "is not the one that was rehearsed" not in text

    another = made_up_rehearsal()
    RunDirectory(run.path).rehearsal.write_text(json.dumps(asdict(another)))
    text = to_markdown(page_of(run.path))
    assert "The run's job is not the one that was rehearsed, first: its steps differ." in text

    unseen = replace(found, sees_waits=False)
    RunDirectory(run.path).rehearsal.write_text(json.dumps(asdict(unseen)))
    assert "45.9% | not seen |" in to_markdown(page_of(run.path))


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "{}",
        lambda text: text.replace("3385", "1" + 400 * "0"),
        lambda text: text.replace("3385", "-1"),
        lambda text: text.replace("0.312", "NaN"),
        lambda text: text.replace("0.312", "Infinity"),
        lambda text: text.replace("0.459", "1e300"),
    ],
)
def test_damaged_rehearsal_gets_a_sentence(tmp_path: Path, damage: Callable[[str], str]):
    run = RunInFiles.new(tmp_path / "run")
    RunDirectory(run.path).rehearsal.write_text(damage(json.dumps(asdict(made_up_rehearsal()))))
    assert "rehearsal.json is damaged" in missing(page_of(run.path))["Rehearsal"]


def test_no_text_steers_a_terminal_or_reorders_a_page(tmp_path: Path):
    run = RunInFiles.new(tmp_path / "run")
    found = replace(made_up_rehearsal(), limits=("\x1b[2J\x07 and \u202e",))
    RunDirectory(run.path).rehearsal.write_text(json.dumps(asdict(found)))
    page = page_of(run.path)
    for text in (to_markdown(page), to_html(page).partition("<script>")[0]):
        assert "x1b" in text
        assert not {"\x1b", "\x07", "\u202e"} & set(text)
