"""The data keys of a job through the real command: remote shards, a cache, mixtures, limits, wrong input."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.range_server import serving
from support.shards import write_shards

from flipscale.data.quarantine import read_quarantine
from flipscale.runs.directory import RunDirectory

pytestmark = pytest.mark.long  # each starts the command several times


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Yield a file system of 300 kB."""
    directory = tmp_path / "disk"
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(directory)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a small file system can only be mounted by root")
    yield directory
    subprocess.run(["umount", str(directory)], check=True)


def said(finished: subprocess.CompletedProcess[str]) -> str:
    """Return the one sentence that reports wrong input."""
    assert finished.returncode == 2, finished.stderr
    assert "Traceback" not in finished.stderr
    (sentence,) = [line for line in finished.stderr.splitlines() if line.startswith("error: ")]
    return sentence


def test_remote_shards_through_a_cache_that_fills_up(tiny_run, data_set, small_disk):
    """The training is the same as from files, and there is one warning about the full disk."""
    straight = tiny_run("straight")
    assert straight.train().returncode == 0
    with serving(data_set) as server:
        remote = tiny_run(
            "remote",
            data={
                "train": f"{server.address}/train/{{00000..00002}}.tar",
                "cache": {"directory": str(small_disk), "size": "100MB"},
                "workers": 1,
            },
        )
        finished = remote.train()
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr.count("cannot be written (No space left on device)") == 1
    assert remote.metrics() == straight.metrics()
    assert list(small_disk.glob(".*.block.*")) == []


def test_a_mixture_stops_resumes_and_is_audited(tiny_run, data_set):
    """Its order is that of the rule which the run recorded, whichever is the newest."""
    patterns = "::".join(f"{data_set}/train/0000{number}.tar" for number in range(3))
    data = {"train": patterns, "weights": [1, 3, 2]}
    straight, stopped = tiny_run("straight", data=data), tiny_run("stopped", data=data)
    assert straight.train().returncode == 0
    assert stopped.train("phases.1.samples=152", "checkpoint.every=[8 steps]").returncode == 0
    assert straight.last_manifest()["progress"]["digest"] == stopped.last_manifest()["progress"]["digest"]
    audit = [sys.executable, "-m", "flipscale", "data", "audit", str(straight.output)]
    finished = subprocess.run(audit, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    index = RunDirectory(straight.output).index
    recorded = json.loads(index.read_text())
    assert (recorded["sources"], recorded["turns"]) == ([1, 1, 1], 2)
    assert "data.weights.0 was 1.0, now 2.0" in said(straight.train("data.weights=[2,3,2]"))

    del recorded["turns"]  # as in a run that began before there was a second rule
    index.write_text(json.dumps(recorded))
    assert subprocess.run(audit, capture_output=True, check=False).returncode == 1
    RunDirectory(stopped.output).index.write_text(json.dumps(recorded))
    assert "or index.json was edited; restore them" in said(stopped.train())


def test_too_many_bad_samples_end_the_run(tiny_run, tmp_path):
    bad_at = {(0, number): "half a jpeg" if number % 2 else "blank caption" for number in range(0, 80, 3)}
    run = tiny_run(data={"train": write_shards(tmp_path / "bad", [120], bad_at), "max_bad_fraction": 0.012})
    sentence = said(run.train())
    found = read_quarantine(RunDirectory(run.output).quarantine)
    assert len(found) > 12
    assert f"{len(found)} of the first " in sentence
    assert "the caption is blank: " in sentence
    assert "max_bad_fraction = 0.012" in sentence
    assert run.train("data.max_bad_fraction=1").returncode == 0


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["data.weights=[1,0]"], "data.weights.1: a weight must be above zero"),
        (["data.weights=[1,2]"], "weights has 2 numbers, but train joins 1 patterns"),
        (["data.train=pipe:cat x.tar"], "set cache: {directory, size}"),
        (
            ["data.cache.directory=/proc/no", "data.cache.size=1GB"],
            "data.cache.directory /proc/no cannot be made",
        ),
        (["data.cache.directory=x", "data.cache.size=1XB"], "is not an amount of memory or disk"),
        (["data.tokenizer.vocab=bert-base-uncased"], "bert-base-uncased"),
        (["data.captions={}"], "data.captions"),
    ],
)
def test_wrong_data_keys(tiny_run, monkeypatch, tmp_path, overrides, sentence):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    assert sentence in said(tiny_run().train(*overrides))


def test_a_source_without_pairs(tiny_run, data_set, tmp_path):
    empty = write_shards(tmp_path / "empty", [0, 0])
    both = f"{data_set}/train/{{00000..00002}}.tar::{empty}"
    sentence = said(tiny_run(data={"train": both, "weights": [1, 1]}).train())
    assert "source number 2 of data.train has only 0 image-caption pairs" in sentence
