"""Every strategy trains as one process does, and a run may stop under one and resume under another.

Real processes of the real command. Each strategy runs once from start to end; a run that stopped at half of
it is that run's directory without what came after.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from support.tiny_run import TinyRun

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

STEPS, STOP, BATCH = 16, 8, 16


class Setting(NamedTuple):
    processes: int
    overrides: tuple[str, ...]


def _setting(processes: int, strategy: str, *overrides: str) -> Setting:
    return Setting(processes, (f"sharding.strategy={strategy}", *overrides))


SETTINGS = {
    "one process": _setting(1, "ddp"),
    "ddp x2": _setting(2, "ddp"),
    "fsdp x2": _setting(2, "fsdp"),
    "hsdp 2x2": _setting(4, "hsdp", "sharding.shard_size=2"),
    "zero1 x2": _setting(2, "zero1"),
    "zero2 x2": _setting(2, "zero2"),
    "zero3 x2": _setting(2, "zero3"),
    "fairscale_oss x2": _setting(2, "fairscale_oss"),
}
MATRIX = [name for name in SETTINGS if name != "zero2 x2"]  # zero1's state, gathered by the same calls
MORE_PROCESSES = {
    f"{name} x4": _setting(4, name) for name in ("fsdp", "zero1", "zero2", "zero3", "fairscale_oss")
}

Straight = Callable[[str], TinyRun]


@pytest.fixture(scope="module")
def straight(data_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Straight:
    """The uninterrupted run of a setting; made once, on first use."""
    root = tmp_path_factory.mktemp("matrix")
    done: dict[str, TinyRun] = {}

    def run(name: str) -> TinyRun:
        if name not in done:
            made = TinyRun(_write_job(root / f"{name}.yaml", data_set), root / name)
            _train(made, name)
            done[name] = made
        return done[name]

    return run


def _write_job(path: Path, data_set: Path) -> Path:
    tokenizer = {"kind": "wordpiece", "vocab": str(data_set / "vocab.txt"), "context_length": 16}
    train = str(data_set / "train/{00000..00002}.tar")
    phase = {"name": "masked", "samples": STEPS * BATCH, "mask_ratio": 0.5, "batch_size": BATCH}
    document: dict[str, Any] = {
        "name": "matrix",
        "model": "vit_micro_p8",
        "data": {"train": train, "tokenizer": tokenizer, "lanes": 8, "window": 16, "workers": 0},
        "phases": [{**phase, "base_lr": 0.02, "warmup": 64}],
        "optimizer": {"clip_grad_norm": 1.0},
        "checkpoint": {"every": [f"{STOP} steps"]},
        "logging": {"every": "1 steps", "tensorboard": False},
    }
    path.write_text(yaml.safe_dump(document))
    return path


def _train(run: TinyRun, name: str) -> None:
    setting = (SETTINGS | MORE_PROCESSES)[name]
    done = run.train(f"output={run.output}", *setting.overrides, processes=setting.processes)
    assert done.returncode == 0, done.stderr


def _stopped(run: TinyRun, output: Path) -> TinyRun:
    """A copy of the run as it was when it had saved after STOP steps."""
    shutil.copytree(run.output, output)
    at_stop, at_end = sorted((output / "checkpoints").glob("samples_*"))
    shutil.rmtree(at_end)
    (output / "checkpoints" / "LATEST").write_text(at_stop.name + "\n")
    return TinyRun(run.job, output)


def _losses(run: TinyRun) -> list[float]:
    metrics = run.metrics()
    assert [m["step"] for m in metrics] == list(range(1, STEPS + 1))
    return [m["loss"] for m in metrics]


def _digests(run: TinyRun) -> list[str]:
    return [m["digest"] for m in run.metrics()]


@pytest.mark.parametrize(
    "name",
    [
        *(name for name in MATRIX if name != "one process"),
        *(pytest.param(name, marks=pytest.mark.long) for name in ("zero2 x2", *MORE_PROCESSES)),
    ],
)
def test_the_curve_is_that_of_one_process(straight: Straight, name: str) -> None:
    alone, sharded = straight("one process"), straight(name)
    apart = [abs(a - b) for a, b in zip(_losses(alone), _losses(sharded), strict=True)]
    assert max(apart[:3]) <= 1e-6
    assert max(apart) <= 1e-4
    assert _digests(sharded) == _digests(alone)


QUICK = [(name, name) for name in ("fsdp x2", "zero3 x2")]
PAIRS = [
    pytest.param(first, second, marks=[] if (first, second) in QUICK else [pytest.mark.long])
    for first in MATRIX
    for second in MATRIX
]


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_run_stops_under_one_strategy_and_resumes_under_another(
    straight: Straight, tmp_path: Path, first: str, second: str
) -> None:
    uninterrupted = straight(second)
    run = _stopped(straight(first), tmp_path / "run")
    _train(run, second)
    if first == second:
        assert run.metrics() == uninterrupted.metrics()
        assert run.weights() == uninterrupted.weights()
        return
    apart = [abs(a - b) for a, b in zip(_losses(run), _losses(uninterrupted), strict=True)]
    assert max(apart) <= 1e-5
    assert _digests(run) == _digests(uninterrupted)
    assert run.last_manifest()["progress"]["optimizer_steps"] == STEPS
