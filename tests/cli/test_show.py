"""`flipscale show ...` as a user sees it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.broken_files import flipscale
from support.job_texts import BASE

from flipscale.cli.show.presets import presets
from flipscale.config import load_job
from flipscale.models.presets import PRESETS


def test_shown_job_is_a_job_file(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(BASE)
    shown = flipscale("show", "job", tmp_path / "job.yaml", "seed=7", "data.lanes=128")
    assert (shown.code, shown.errors) == (0, "")
    (tmp_path / "shown.yaml").write_text(shown.output)
    assert load_job(tmp_path / "shown.yaml") == load_job(tmp_path / "job.yaml", ["seed=7", "data.lanes=128"])

    again = flipscale("show", "job", tmp_path / "shown.yaml", "--json")
    document = json.loads(again.output)
    assert document["job"]["seed"] == 7
    # Every value is set in the file that was shown.
    number = shown.output.splitlines().index("seed: 7  # the command line") + 1
    assert document["origins"]["seed"] == f"{tmp_path / 'shown.yaml'}:{number}"


def test_job_is_shown_without_torch(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(BASE)
    program = [
        sys.executable,
        "-X",
        "importtime",
        "-m",
        "flipscale",
        "show",
        "job",
        str(tmp_path / "job.yaml"),
    ]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "pydantic" in imported
    assert not {"torch", "numpy"} & imported


def test_stdout_of_few_characters_shows_escapes(tmp_path: Path) -> None:
    path = tmp_path / "\u4e2d.yaml"
    path.write_text(BASE)
    program = [sys.executable, "-m", "flipscale", "show", "job", str(path)]
    environment = {**os.environ, "PYTHONIOENCODING": "latin1"}
    done = subprocess.run(program, capture_output=True, check=True, env=environment)
    assert b"\\u4e2d.yaml:1" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.yaml"], "there is no job file at nowhere.yaml"),
        (["job.yaml", "data.lane=3"], "unknown key data.lane; did you mean lanes?"),
        (["job.yaml", "seed"], "is not of the form key.sub=value"),
        (["nul.yaml"], "extends must be the path of one job file"),
        (["loop.yaml"], "leads to itself"),
    ],
)
def test_wrong_job_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    (tmp_path / "job.yaml").write_text(BASE)
    (tmp_path / "nul.yaml").write_text('extends: "a\\0b"\n')
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    monkeypatch.chdir(tmp_path)
    outcome = flipscale("show", "job", *words)
    assert (outcome.code, outcome.output) == (2, "")
    (sentence,) = outcome.errors.splitlines()
    assert message in sentence


def test_presets_are_those_that_a_job_can_name(capsys: pytest.CaptureFixture[str]) -> None:
    presets(as_json=True)
    listed = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert list(listed) == list(PRESETS)
    # Table 9 of the paper; the parameters are those of tests/models/test_presets.py.
    assert listed["vit_l16"]["vision"] == {
        **{"image_size": 224, "patch_size": 16, "width": 1024, "layers": 24, "heads": 16},
        "parameters": 303_099_904,
    }
    text = listed["vit_l16"]["text"]
    assert (text["width"], text["layers"], text["heads"], text["context_length"]) == (768, 12, 12, 32)
    # The tests there count one token more.
    assert text["parameters"] == 108_522_240 - 768
    assert listed["vit_l16"]["embed_dim"] == 768
    projections = (1024 + 768) * 768
    total = listed["vit_l16"]["vision"]["parameters"] + text["parameters"] + projections + 1
    assert listed["vit_l16"]["parameters"] == total


def test_table_of_presets_fits_a_page() -> None:
    program = [sys.executable, "-m", "flipscale", "show", "presets"]
    environment = {**os.environ, "COLUMNS": "100"}
    done = subprocess.run(program, capture_output=True, text=True, check=True, env=environment)
    (line,) = [line for line in done.stdout.splitlines() if " vit_h14 " in line]
    cells = [cell.strip() for cell in line.strip("│").split("│")]
    assert cells == ["vit_h14", "224 / 14", "1280 x 32 x 16", "630.4 M", "1024 x 24 x 16", "333.6 M", "1024"]
