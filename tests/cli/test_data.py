"""`flipscale data ...`, `plan` and `schema` as a user sees them: exit codes and what is printed."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from support.shards import BAD, good, write_shards, write_tar

from flipscale import jsonl
from flipscale.config import load_job
from flipscale.data.order.mixture import Mixture
from flipscale.data.shards.index_document import load_index
from flipscale.data.text.tokenizer import load_tokenizer
from flipscale.progress import Progress
from flipscale.runs.directory import RunDirectory, prepare, recorded_job
from flipscale.runs.expected_order import expected_order, sample_keys
from flipscale.runs.identity import DataIdentity, check_identity
from flipscale.runs.manifest import Manifest, StoredFile

PROGRAM = Path(sys.executable).with_name("flipscale")


def flipscale(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(PROGRAM), *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error::ResourceWarning"},
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def done(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    finished = flipscale(*arguments, cwd=cwd)
    assert finished.returncode == 0, finished.stderr
    return finished


def refused(*arguments: object, cwd: Path) -> str:
    """Run a command with wrong input, and return its error: one sentence on stderr."""
    finished = flipscale(*arguments, cwd=cwd)
    assert (finished.returncode, finished.stdout) == (2, "")
    (sentence,) = finished.stderr.splitlines()
    assert sentence.startswith("error: ")
    return sentence


def test_index(tmp_path):
    write_shards(tmp_path / "data", [4, 3])
    os.truncate(tmp_path / "data" / "00001.tar", 4000)
    finished = done("data", "index", "data/{00000..00001}.tar", "out/index", cwd=tmp_path)
    index = load_index(tmp_path / "out" / "index")
    assert index.samples == 5
    assert finished.stdout == (f"out/index: 5 samples in 2 shards, fingerprint {index.fingerprint[:16]}\n")
    assert finished.stderr == ("warning: data/00001.tar is damaged: unexpected end of data after 1 samples\n")


def test_wrong_shards_and_directories_are_refused(tmp_path):
    pattern = write_shards(tmp_path, [2])
    (tmp_path / "zipped.tar").write_bytes(gzip.compress((tmp_path / "00000.tar").read_bytes()))
    for shards, out, message in [
        ("{00000..00002}.tar", "out", "the shard 00001.tar and 1 more of the pattern"),
        ("zipped.tar", "out", "zipped.tar is not an uncompressed tar file"),
        ("zipped.tar", "out", "; name webdataset shards as in /data/{0000..0099}.tar, and decompress them"),
        (pattern, ".", "is not empty and holds no index"),
    ]:
        assert message in refused("data", "index", shards, out, cwd=tmp_path)

    wrong = refused("data", "index", pattern, "out", "--workers", 0, cwd=tmp_path)
    assert wrong == "error: --workers is 0; give at least 1"


def test_check_reports_every_damage(tmp_path):
    bad_at = {(0, n): kind for n, kind in enumerate(BAD)}
    pattern = write_shards(tmp_path / "a [red] cat", [len(BAD) + 2, 2], bad_at)
    os.truncate(tmp_path / "a [red] cat" / "00001.tar", 4000)
    report = json.loads(done("data", "check", pattern, "--json", cwd=tmp_path).stdout)
    assert (report["shards"], report["samples"], report["good"]) == (2, len(BAD) + 3, 3)
    reasons = {record["ordinal"]: record["reason"] for record in report["bad"]}
    assert all(BAD[kind][2] in reasons[n] for n, kind in enumerate(BAD))
    assert [damage["samples"] for damage in report["damaged_shards"]] == [1]
    assert report["shorter_side_pixels"] == {"smallest": 30, "median": 30, "largest": 30}
    assert report["caption_words"] == {"smallest": 4, "median": 4, "largest": 4}

    # A relative path fits into a line of the table, whatever the length of tmp_path.
    nearby = os.path.relpath(pattern, tmp_path)
    text = done("data", "check", nearby, cwd=tmp_path).stdout
    assert f"{len(BAD) + 3} samples in 2 shards: {len(BAD)} cannot be used" in text
    assert "00001.tar is damaged: unexpected end of data after 1 samples" in text
    # Whole paths, brackets included, and one line for reasons that differ only in their numbers.
    assert "in a [red] cat/00000.tar" in text
    assert "│ the image has only N x N pixels" in text
    assert "…" not in text


def test_wrong_pixel_limit_is_refused(tmp_path):
    for limit in ("0", "12.8Q"):
        wrong = refused("data", "check", "x.tar", f"--max-image-pixels={limit}", cwd=tmp_path)
        assert wrong.startswith("error: --max-image-pixels")


def test_vocab(tmp_path):
    bad_at = {(0, 1): "missing caption", (1, 0): "not utf-8", (1, 2): "half a jpeg"}
    pattern = write_shards(tmp_path, [4, 4], bad_at)
    finished = done("data", "vocab", pattern, "new/vocab.txt", "--size", 100, cwd=tmp_path)
    pieces = (tmp_path / "new" / "vocab.txt").read_text().splitlines()
    assert finished.stdout == f"new/vocab.txt: {len(pieces)} word pieces from the captions of 8 samples\n"
    tokenizer = load_tokenizer("wordpiece", str(tmp_path / "new" / "vocab.txt"))
    assert tokenizer(["a red cat"])[0, 1:4].tolist() == [pieces.index(word) for word in ("a", "red", "cat")]


def test_vocab_without_text_or_room_is_refused(tmp_path):
    pattern = write_shards(tmp_path, [2], {(0, 0): "missing caption", (0, 1): "blank caption"})
    assert "must end in .txt" in refused("data", "vocab", pattern, "vocab.json", cwd=tmp_path)
    assert "hold no text" in refused("data", "vocab", pattern, "vocab.txt", cwd=tmp_path)
    whole = write_tar(tmp_path / "whole.tar", good(0))
    assert "has no room" in refused("data", "vocab", whole, "vocab.txt", "--size", 3, cwd=tmp_path)
    assert not (tmp_path / "vocab.txt").exists()


@pytest.mark.slow
def test_check_and_vocab_read_the_captions_of_a_job(tmp_path, job):
    members = []
    for n in range(4):
        image, text = good(n)
        members += [image, (image[0].replace("jpg", "json"), json.dumps({"caption": "a red cat"}).encode())]
        members += [(text[0], b"\0")]
    for n in range(2):
        write_tar(tmp_path / f"{n}.tar", members)
    document = yaml.safe_load(job.read_text())
    document["data"] |= {"captions": {"JSON.caption": 1}, "max_image_pixels": 1200}
    job.write_text(yaml.safe_dump(document))

    report = json.loads(done("data", "check", "job.yaml", "--json", cwd=tmp_path).stdout)
    assert (report["good"], report["captions"]) == (8, {"json.caption": 8})
    report = json.loads(done("data", "check", "{0..1}.tar", "--json", cwd=tmp_path).stdout)
    assert (report["good"], report["reasons"]) == (0, {"the caption is blank": 8})
    few = done("data", "check", "job.yaml", "--max-image-pixels=1199", "--captions=txt", cwd=tmp_path).stdout
    assert "8 cannot be used" in few

    options = ("--captions", "txt", "--captions", "json.caption", "--fix", "clean")
    text = done("data", "check", "{0..1}.tar", *options, cwd=tmp_path).stdout
    assert "samples with a caption: 0 in txt, 8 in json.caption" in text
    assert "clean: 8 samples in clean/{000000..000001}.tar" in text
    assert "left out" not in text
    assert done("data", "check", "clean/{000000..000001}.tar", "--captions=json.caption", cwd=tmp_path)

    done("data", "vocab", "job.yaml", "vocab.txt", cwd=tmp_path)
    assert "##a" in (tmp_path / "vocab.txt").read_text().split()
    wrong = refused("data", "vocab", "0.tar", "other.txt", "--captions", "json", cwd=tmp_path)
    assert wrong.startswith("error: --captions: 'json' is a JSON document")


@pytest.fixture
def job(tmp_path: Path) -> Path:
    document: dict[str, Any] = {
        "name": "first",
        "model": "vit_micro_p8",
        "data": {"train": "{0..1}.tar", "tokenizer": {"vocab": "vocab.txt"}, "lanes": 8, "window": 16},
        "phases": [
            {"name": "a", "samples": 640, "mask_ratio": 0.5, "batch_size": 64, "base_lr": 1e-3},
            {"name": "b", "samples": 96, "mask_ratio": 0.0, "batch_size": 64, "base_lr": 1e-4},
        ],
    }
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def test_audit(tmp_path, job):
    """Audit a directory as a run of 736 samples leaves it; test_audit.py reads the streams themselves."""
    assert "is not a run directory" in refused("data", "audit", "none", cwd=tmp_path)

    run = RunDirectory(tmp_path / "run")
    prepare(run, load_job(job), 0)
    identity = DataIdentity("f", "t", samples=160, shards=(("0.tar", 100), ("1.tar", 60)))
    check_identity(run, identity, lambda directory: None)
    assert "nothing to audit" in refused("data", "audit", "run", cwd=tmp_path)

    jsonl.append(run.quarantine, [{"shard": 0, "ordinal": 7, "path": "0.tar", "key": "7", "reason": "blank"}])
    order = expected_order(Mixture([100, 60], 8, 16, 0), sample_keys([(0, 7)]), 0, 736)
    line = {"segment": 0, "samples_from": 0, "samples_to": 736, "reason": "stopped", "quarantined": 1}
    line["digest"] = order.digest.hex()
    jsonl.append(run.ledger, [line])
    document = recorded_job(run).model_dump(mode="json", exclude_none=True)
    manifest = Manifest(
        Progress(736, order.digest), False, {"a.safetensors": StoredFile(1, "0" * 64)}, document
    )
    (run.checkpoints / "samples_000000000736").mkdir()
    (run.checkpoints / "samples_000000000736" / "manifest.json").write_text(manifest.to_json())
    text = done("data", "audit", "run", cwd=tmp_path).stdout
    assert text.count(line["digest"]) == 4
    assert "it does not prove that the trainer used them rightly" in text
    assert "736 samples seen (4.6 epochs of 160): 0 repeated, 0 skipped; 1 unusable samples" in text

    run.quarantine.unlink()
    finished = flipscale("data", "audit", "run", cwd=tmp_path)
    assert finished.returncode == 1
    assert "DIFFERENT" in finished.stdout
    assert (
        "contradiction: quarantine.jsonl is missing, but the ledger counted 1 unusable samples"
        in finished.stdout
    )
    assert finished.stderr.startswith("error: run did not read the samples that its order prescribes")

    finished = flipscale("data", "audit", "run", "--json", cwd=tmp_path)
    assert finished.returncode == 1
    _, mark = json.loads(finished.stdout)["marks"]
    assert mark["recorded"] == line["digest"] != mark["expected"]


@pytest.mark.slow  # imports torch twice
def test_plan(tmp_path, job):
    text = done("plan", "job.yaml", "phases.0.samples=1280", cwd=tmp_path).stdout
    for shown in ("1.28k", "20", "64", "50%", "0.00025", "1.376k samples, 22 steps"):
        assert shown in text
    assert "…" not in text
    sentence = refused("plan", "job.yaml", "phases.0.samples=1281", cwd=tmp_path)
    assert sentence.endswith("not a multiple of data.lanes = 8; the nearest are 1280 and 1288")


def test_schema(tmp_path):
    schema = json.loads(done("schema", cwd=tmp_path).stdout)
    assert "phases" in schema["properties"]


def test_unreachable_shards_are_refused(tmp_path):
    write_tar(tmp_path / "0.tar", good(0))
    for shards, message in [
        ("pipe:cat 0.tar", "would run the command 'cat', which is not allowed"),
        ("nowhere://bucket/0.tar", "the storage of nowhere://bucket/0.tar is not known"),
        ("0.tar", "_stats.json does not exist; make the index without --from-stats"),
    ]:
        option = "--from-stats" if shards == "0.tar" else "--members"
        assert message in refused("data", "index", shards, "out", option, cwd=tmp_path)

    finished = done("data", "index", "pipe:cat 0.tar", "piped", "--allow-pipe", "cat", cwd=tmp_path)
    assert finished.stdout.startswith("piped: 1 samples in 1 shards")


def test_check_writes_clean_shards_and_pictures(tmp_path):
    bad_at = {(0, 1): "half a jpeg", (1, 0): "blank caption"}
    pattern = write_shards(tmp_path / "data", [3, 2], bad_at)
    before = {path: path.read_bytes() for path in (tmp_path / "data").iterdir()}

    text = done("data", "check", pattern, "--fix", "clean", "--report", "report", cwd=tmp_path).stdout
    assert "clean: 3 samples in clean/{000000..000001}.tar" in text
    assert {path: path.read_bytes() for path in (tmp_path / "data").iterdir()} == before
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert (report["samples"], report["good"], report["clean"]["samples"]) == (5, 3, 3)

    for name in ("image_sizes.png", "caption_lengths.png"):
        with Image.open(tmp_path / "report" / name) as picture:
            assert picture.size == (800, 450)
            assert len(picture.convert("L").getcolors() or []) > 10

    again = json.loads(done("data", "check", "clean/{000000..000001}.tar", "--json", cwd=tmp_path).stdout)
    assert (again["samples"], again["bad"], again["damaged_shards"]) == (3, [], [])
    assert "--fix: clean is not empty" in refused("data", "check", pattern, "--fix", "clean", cwd=tmp_path)
