"""Commands with few descriptors, few inodes, or only a read-only place to write to."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.broken_files import Outcome, flipscale
from support.tiny_run import TinyRun

Words = list[object]
WRITERS: dict[str, Callable[[Path, TinyRun, Path], Words]] = {
    "train": lambda shards, run, out: ["train", run.job, f"output={out}"],
    "export": lambda shards, run, out: ["export", run.output, out],
    "data index": lambda shards, run, out: ["data", "index", shards, out],
    "report": lambda shards, run, out: ["report", run.output, "--out", out],
    "eval": lambda shards, run, out: ["eval", run.output, "--retrieval", shards, "--out", out / "scores"],
    "data check": lambda shards, run, out: ["data", "check", shards, "--fix", out, "--workers", 1],
    "data vocab": lambda shards, run, out: ["data", "vocab", shards, out / "vocab.txt", "--size", 300],
    "data synth": lambda shards, run, out: [*("data", "synth", out, "--train", 8, "--val", 2, "--test", 0)],
}
NAMED = ("train", "export", "data index", "report")


@pytest.fixture(scope="module")
def trained(data_set: Path, tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    phase = {"name": "all", "samples": 32, "mask_ratio": 0.5, "batch_size": 16, "base_lr": 0.02}
    run = TinyRun.write(tmp_path_factory.mktemp("trained"), "tiny", data_set, phases=[phase])
    done = run.train()
    assert done.returncode == 0, done.stderr
    return run


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mount a file system in memory with these options."""
    place = tmp_path / "mounted"
    place.mkdir()

    def make(options: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("only root may mount a file system")
        return place

    yield make
    subprocess.run(["umount", "-l", str(place)], capture_output=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_read_only_place_is_refused_before_the_work(
    data_set: Path, trained: TinyRun, mount: Callable[[str], Path], name: str
) -> None:
    out = mount("ro") / "out"
    outcome = flipscale(*WRITERS[name](data_set / "val/00000.tar", trained, out))
    assert (outcome.code, outcome.fault) == (2, ""), outcome.errors
    assert outcome.errors.count("\n") == 1
    assert str(out) in outcome.errors
    assert "Read-only file system" in outcome.errors


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("inodes", [3, 8])  # the root takes one
def test_few_inodes_are_one_sentence(
    data_set: Path, trained: TinyRun, mount: Callable[[str], Path], name: str, inodes: int
) -> None:
    place = mount(f"nr_inodes={inodes}")
    outcome = flipscale(*WRITERS[name](data_set / "val/00000.tar", trained, place / "out"))
    assert outcome.fault == ""
    if outcome.code:
        last = outcome.errors.strip().splitlines()[-1]
        assert last.startswith("error: "), outcome.errors
        assert str(place) in last
        assert "No space left on device" in last
        if name != "train":  # a run says in its directory why it ended
            assert list(place.rglob("*.unfinished*")) == []
    else:
        assert len(list(place.rglob("*"))) < inodes


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["train", "data index", *(pytest.param(n, marks=pytest.mark.long) for n in ("export", "report"))]
)
def test_eight_descriptors_are_enough_or_one_sentence(
    data_set: Path, trained: TinyRun, tmp_path: Path, name: str
) -> None:
    out = tmp_path / "out"
    words = WRITERS[name](data_set / "val/00000.tar", trained, out)
    outcome = limited(8, words)
    assert outcome.fault == ""
    if outcome.code:
        assert "may open no more than 8 files here; raise the limit (`ulimit -n`)" in outcome.errors
        again = flipscale(*words)
        assert (again.code, again.fault) == (0, ""), again.errors


def limited(descriptors: int, words: Words) -> Outcome:
    """Execute a command that may not open more files than this."""
    command = shlex.join([sys.executable, "-m", "flipscale", *map(str, words)])
    done = subprocess.run(
        ["bash", "-c", f"ulimit -n {descriptors}; exec {command}"],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr, hung=False)
