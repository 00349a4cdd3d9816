"""The public Python names: complete, light to import, documented, and equal to what the commands do."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest
from documentation.python_names import BEGIN, PAGE, page_with_reference
from support.job_texts import BASE
from typer.testing import CliRunner

import flipscale
from flipscale import api
from flipscale.cli.app import app

NAMES = [name for name in flipscale.__all__ if name != "__version__"]


def test_every_name_of_the_surface_is_exported():
    assert sorted(api.__all__) == sorted(NAMES)
    assert len(NAMES) <= 12
    assert set(flipscale.__all__) <= set(dir(flipscale))
    assert all(getattr(flipscale, name) is getattr(api, name) for name in NAMES)
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = flipscale.lod


@pytest.mark.parametrize("name", NAMES)
def test_every_name_has_a_docstring(name: str):
    value = getattr(flipscale, name)
    text = inspect.getdoc(value) or ""
    assert text
    if inspect.isfunction(value):
        assert all(f"{argument}: " in text for argument in inspect.signature(value).parameters)


def test_page_has_the_reference_of_the_docstrings():
    page = PAGE.read_text(encoding="utf-8")
    assert page_with_reference(page) == page, "run `make docs-tables`"
    with pytest.raises(flipscale.UserError, match="lacks the comment"):
        page_with_reference(BEGIN)


@pytest.mark.executes
def test_import_of_the_package_brings_no_library():
    """The names are there at once; the libraries come with the first call."""
    program = (
        "import sys; before = set(sys.modules); import flipscale; flipscale.load_job; "
        "print(*set(sys.modules) - before)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    imported = {name for name in done.stdout.split() if not name.startswith("flipscale")}
    assert not {name.split(".")[0] for name in imported} - sys.stdlib_module_names


def test_job_and_plan_are_those_of_the_commands(tmp_path: Path):
    file = tmp_path / "job.yaml"
    file.write_text(BASE)
    job = flipscale.load_job(file, "seed=7")
    assert job == flipscale.load_job(tmp_path, "seed=7")
    assert job.seed == 7

    shown = CliRunner().invoke(app, ["plan", str(file), "seed=7", "--json"])
    assert json.loads(shown.stdout)["steps"] == flipscale.plan(job).steps

    with pytest.raises(flipscale.UserError, match="unknown key sed"):
        flipscale.load_job(file, "sed=7")


def test_run_of_an_earlier_version_is_read(tmp_path: Path, stock_in_process: None):
    """The committed run of 0.1.0 is loaded, scored, audited and exported."""
    run = Path(__file__).parent / "fixtures/run_0_1_0/run"
    model = flipscale.load(run)
    assert (flipscale.status(run).state, model.samples_seen) == ("lost", 128)
    assert flipscale.audit(run).proven
    features = model.model.encode_text(model.tokenizer(["a red circle"]))
    assert features.norm(dim=-1).item() == pytest.approx(1, abs=1e-5)

    report = flipscale.export(run, tmp_path / "out")
    assert report.text_difference <= 1e-5
    assert flipscale.load(tmp_path / "out").samples_seen is None
