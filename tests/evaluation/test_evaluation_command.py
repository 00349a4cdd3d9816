"""`flipscale eval` on a small, untrained model: sets from a file, masks, tables, the schema."""

import json
from pathlib import Path

import pytest
from pydantic import TypeAdapter
from support.evaluation_samples import swatch, write_tar
from typer.testing import CliRunner

from flipscale.cli.app import app
from flipscale.errors import RunError, UserError
from flipscale.evaluation.document import EvaluationDocument
from flipscale.interop import load_model
from flipscale.interop.loaded_model import LoadedModel
from flipscale.models.flip import build_model
from flipscale.models.presets import preset


@pytest.fixture
def command(tmp_path, words, monkeypatch):
    """A function that runs `flipscale eval` in `tmp_path`, where sets.yaml names two sets under `data`."""
    spec = preset("vit_micro_p8", vocab_size=words.vocab_size, context_length=words.context_length)
    trained = LoadedModel(build_model(spec, seed=1), words)
    monkeypatch.setattr(load_model, "load_model", lambda path, world: trained)
    monkeypatch.chdir(tmp_path)
    members = []
    for n, colour in enumerate(["red", "green", "blue"] * 4):
        members += [
            (f"{n}.jpg", swatch(colour)),
            (f"{n}.cls", b"%d" % (n % 3)),
            (f"{n}.txt", colour.encode()),
        ]
    Path("data").mkdir()
    write_tar(Path("data/a.tar"), members)
    Path("names.txt").write_text("red\ngreen\nblue\n")
    Path("sets.yaml").write_text(
        "zero_shot:\n"
        "  colours: {data: a.tar, classnames: names.txt, templates: name, metric: mean_per_class}\n"
        "retrieval: {colours: a.tar}\n"
    )

    def run(*options: str):
        return CliRunner().invoke(app, ["eval", "model", *options])

    return run


def test_sets_from_a_file_with_a_root_give_a_document_of_the_schema(command):
    done = command("--sets", "sets.yaml", "--root", "data", "--json", "--out", "out.json")
    assert done.exit_code == 0, done.output
    document = json.loads(Path("out.json").read_text())
    assert json.loads(done.stdout) == document
    assert TypeAdapter(EvaluationDocument).validate_python(document, strict=True) == document
    assert document["zero_shot"]["colours"]["metric"] == "mean_per_class"
    assert document["zero_shot"]["colours"]["samples"] == document["retrieval"]["colours"]["images"] == 12


def test_masks_and_ensembles_change_the_scores_and_are_reported(command):
    documents = []
    for options in ([], ["--mask-ratio", "0.5"], ["--mask-ratio", "0.5", "--ensemble"]):
        done = command("--retrieval", "data/a.tar", "--json", *options)
        documents.append(json.loads(done.stdout))
    assert [document["views"] for document in documents] == [
        None,
        {"mask_ratio": 0.5, "ensemble": False, "seed": 0},
        {"mask_ratio": 0.5, "ensemble": True, "seed": 0},
    ]
    ranks = [document["retrieval"]["retrieval"]["text_to_image"]["mean_rank"] for document in documents]
    assert len(set(ranks)) > 1
    shown = command("--retrieval", "data/a.tar", "--mask-ratio", "0.5", "--ensemble").stdout
    assert "with 50% of the patches hidden, averaged over views" in shown


def test_tables_show_value_and_interval(command):
    shown = command("--sets", "sets.yaml", "--root", "data").stdout
    for text in ("mean_per_class", " to ", "image to text", "chance", "33.3%"):
        assert text in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "names no evaluation sets; give --zero-shot, --retrieval or --sets"),
        (["--sets", "sets.yaml"], "a.tar is not a file"),
        (["--sets", "sets.yaml", "--retrieval", "a.tar"], "--sets comes without"),
        (["--sets", "none.yaml"], "there is no evaluation file at none.yaml"),
        (
            ["--zero-shot", "data/a.tar", "--metric", "top3"],
            "--metric top3 does not exist; choose one of top1",
        ),
        (["--retrieval", "data/a.tar", "--ensemble"], "say with --mask-ratio"),
        (["--retrieval", "data/a.tar", "--mask-ratio", "1"], "outside"),
        (["--zero-shot", "data", "--classnames", "folders"], "has no sub-folders"),
        (["--retrieval", "data/a.tar", "--out", "data"], "data cannot be written (Is a directory)"),
        (["--retrieval", "none.tar", "--out", "names.txt/a.json"], "names.txt/a.json cannot be written (Not"),
        (["--metric", "roc_auc"], "--metric roc_auc belongs to the set that --zero-shot names"),
        (["--sets", "sets.yaml", "--subset", "imagenet_a"], "--subset imagenet_a belongs to the set that"),
        (["--retrieval", "data/a.tar", "--classnames", "names.txt"], "--classnames names.txt belongs to"),
    ],
)
def test_wrong_options_are_reported(command, options, message):
    done = command(*options)
    assert isinstance(done.exception, UserError)
    assert message in str(done.exception)


def test_unwritable_results_are_reported_before_the_model_is_loaded(command, monkeypatch):
    monkeypatch.setattr(load_model, "load_model", lambda path, world: pytest.fail("loaded"))
    done = command("--retrieval", "data/a.tar", "--out", "names.txt/a/out.json")
    assert isinstance(done.exception, UserError)
    assert Path("names.txt").read_text() == "red\ngreen\nblue\n"


def test_results_go_into_a_new_directory_and_replace_older_ones(command):
    failed = command("--retrieval", "none.tar", "--out", "new/results/out.json")
    assert "none.tar is not a file" in str(failed.exception)
    assert list(Path("new/results").iterdir()) == []
    for older in ("", "older, and longer than what replaces it " * 1000):
        Path("new/results/out.json").write_text(older)
        done = command("--retrieval", "data/a.tar", "--json", "--out", "new/results/out.json")
        assert json.loads(Path("new/results/out.json").read_text()) == json.loads(done.stdout)


def test_scores_are_shown_if_the_disk_turns_out_to_be_full(command):
    done = command("--retrieval", "data/a.tar", "--json", "--out", "/dev/full")
    assert isinstance(done.exception, RunError)
    assert "/dev/full could not be written (No space left on device)" in str(done.exception)
    assert json.loads(done.stdout)["retrieval"]["retrieval"]["images"] == 12


def test_the_schema_of_the_document_names_every_field():
    done = CliRunner().invoke(app, ["schema", "evaluation"])
    schema = json.loads(done.stdout)
    assert set(schema["required"]) == set(EvaluationDocument.__annotations__)
    assert {"ZeroShotScores", "RetrievalScores", "DirectionScores", "MaskedViews"} == set(schema["$defs"])
    refused = CliRunner().invoke(app, ["schema", "everything"])
    assert "choose job or evaluation" in str(refused.exception)
