"""Fixtures that tests of several packages share."""

from __future__ import annotations

import os

# Before torch is imported: the suite runs several processes per core, as `make test` says, too.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import gc
import random
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from support.costs import CostMeter
from support.hidden_gpus import hidden_gpus, show_gpus
from support.made_once import made_once
from support.shards import tiny_tokenizer
from support.stock_in_process import run_stock_in_process
from support.time_limits import PatientPopen, slowness, time_limit
from support.tiny_run import TinyRun
from support.warm_start import WarmPopen, WarmWorkerPopen

from flipscale.addresses import references
from flipscale.data.synthetic.dataset import SyntheticOptions, synthesize
from flipscale.data.synthetic.vocabulary import COLOURS, SHAPES
from flipscale.data.text.tokenizer import WordPieceTokenizer
from flipscale.data.text.vocabulary import SPECIAL_TOKENS, write_vocabulary
from flipscale.interop import verification

# No test judges by time: an example takes longer whenever the machine is busy.
hypothesis.settings.register_profile(
    "busy machines", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("busy machines")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slowest", type=int, metavar="N", help="print what the N slowest tests wait for")


def pytest_configure(config: pytest.Config) -> None:
    """Measure the speed of this machine before anything else runs; let Ctrl-C reach what tests start."""
    slowness()
    gc.set_threshold(100_000, 20)  # as in the command
    if count := config.getoption("--slowest"):
        config.pluginmanager.register(CostMeter(count))
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a job that a script starts with `&`
        signal.signal(signal.SIGINT, signal.default_int_handler)


_EXECUTES_ALL = bool(os.environ.get("FLIPSCALE_TESTS_EXECUTE"))
_HAS_GPUS = torch.cuda.is_available()
_SEED = os.environ.get("FLIPSCALE_TESTS_SEED", "")


@pytest.hookimpl(wrapper=True)
def pytest_sessionstart() -> Iterator[None]:
    """Fork the processes of pytest-xdist, which start in this hook, from a warm server, too.

    On a machine with GPUs they are executed: they see the GPUs, and the warm server of each does not.
    """
    with pytest.MonkeyPatch.context() as patch:
        if not _EXECUTES_ALL and not _HAS_GPUS:
            patch.setattr(subprocess, "Popen", WarmWorkerPopen)
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop() -> Iterator[Any]:
    """Hide the GPUs when all tests are collected: those that need GPUs have looked for them by then."""
    with hidden_gpus(_HAS_GPUS):
        return (yield)


def pytest_report_header() -> list[str]:
    """Name the seed of a run in random order, so that it can be repeated."""
    return [f"random order: make test-shuffled SEED={_SEED}"] if _SEED else []


@pytest.hookimpl(tryfirst=True)  # xdist reads the marks in this hook, too
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests of a file in one process, and start with what takes longest: the tests on clusters."""
    slow: Counter[str] = Counter()
    groups: dict[pytest.Item, str] = {}
    for item in items:
        group = item.path.relative_to(config.rootpath).as_posix()
        item.add_marker(pytest.mark.xdist_group(group))
        groups[item] = group
        slow[group] += bool(item.get_closest_marker("slow"))

        limit = item.get_closest_marker("timeout")
        seconds = float(limit.args[0] if limit else config.getini("timeout"))
        item.add_marker(pytest.mark.timeout(time_limit(seconds)), append=False)

    if _SEED:
        random.Random(_SEED).shuffle(items)
        return

    # Tests on clusters mostly wait: one such file and one that computes, in turn, keep all cores busy.
    ranks: dict[bool, int] = Counter()
    order = {}
    for group, count in slow.most_common():
        waits = group.startswith("tests/slurm/")
        order[group] = (count == 0, ranks[waits], waits)
        ranks[waits] += 1
    items.sort(key=lambda item: order[groups[item]])


@pytest.fixture
def stock_in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the proof of an export run stock open_clip in this process, which has imported it already."""
    monkeypatch.setattr(verification.subprocess, "run", run_stock_in_process)


@pytest.fixture(scope="session", autouse=True)
def warm_start() -> Iterator[None]:
    """Fork this package's commands from a server that has done the imports; see support/warm_start.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "Popen", PatientPopen if _EXECUTES_ALL else WarmPopen)
        yield


@pytest.fixture(autouse=True)
def _executed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Execute every program of a test that is marked so, and none of a test that is marked `warm`.

    The programs of a test that is marked `gpu` see the GPUs, so that they are executed as well.
    """
    on_gpu = request.node.get_closest_marker("gpu")
    if on_gpu:
        show_gpus(monkeypatch)

    if on_gpu or request.node.get_closest_marker("executes"):
        monkeypatch.setattr(subprocess, "Popen", PatientPopen)
    elif request.node.get_closest_marker("warm"):
        monkeypatch.setattr(subprocess, "Popen", WarmPopen)


@pytest.fixture(autouse=True)
def _own_environment() -> Iterator[None]:
    """Undo what tests, or libraries in them, wrote into the environment, so that programs start warm.

    Values that addresses took from it are no longer hidden in messages.
    """
    # Also what a fixture of several tests caused: torch's compiler writes TORCHINDUCTOR_CACHE_DIR.
    if WarmPopen.server is not None:
        WarmPopen.server.restore_environment()
    before = dict(os.environ)
    yield
    references._used.clear()
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(scope="session")
def tokenizer() -> WordPieceTokenizer:
    return tiny_tokenizer()


@pytest.fixture(scope="session")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """300 training samples of 32 px in 3 shards, and a vocabulary of a few words; only to be read.

    The set is made once per run of pytest, and all of its processes read the same files.
    """

    def make(root: Path) -> None:
        synthesize(root, SyntheticOptions(image_size=32, train=300, val=16, test=100, shard_size=100))
        words = [*SPECIAL_TOKENS, *COLOURS, *SHAPES, *"abcdefghijklmnopqrstuvwxyz"]
        write_vocabulary(words, root / "vocab.txt")

    root = made_once("set", make, tmp_path_factory)
    before = _contents(root)
    yield root
    assert _contents(root) == before, "a test has written into the data that all tests share"


def _contents(root: Path) -> dict[Path, tuple[int, int]]:
    status = {path: path.stat() for path in root.rglob("*") if path.is_file()}
    return {path: (file.st_size, file.st_mtime_ns) for path, file in status.items()}


@pytest.fixture
def tiny_run(data_set: Path, tmp_path: Path) -> Callable[..., TinyRun]:
    """Make a job of 40 + 10 steps over 8 lanes; keyword arguments replace top-level keys."""
    return lambda name="tiny", **changes: TinyRun.write(tmp_path, name, data_set, **changes)
