"""Curves of runs of any length: which points are left out, and which never are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from flipscale.reporting.run.series import read_series, thinned


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 5000), st.integers(1, 40), st.integers(0, 1000))
def test_thinned_curve_keeps_extremes_and_both_ends(count: int, buckets: int, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=count)
    kept = thinned(values, buckets)
    assert np.array_equal(kept, np.unique(kept))
    assert len(kept) <= 4 * buckets
    if count:
        assert kept[0] == 0
        assert kept[-1] == count - 1
        assert values[kept].max() == values.max()
        assert values[kept].min() == values.min()
    if count <= 4 * buckets:
        assert len(kept) == count


def test_one_spike_in_long_run_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with open(path, "w") as file:
        for step in range(20_000):
            loss = 9.5 if step == 12_345 else 1.0 + step % 7 / 100
            phase = "a" if step < 15_000 else "b"
            file.write(json.dumps({"samples": step * 8, "phase": phase, "loss": loss}) + "\n")
    series = read_series(tmp_path, ["loss"])
    assert len(series) == 20_000
    samples, losses = series.curve("loss", 0)
    assert len(samples) <= 1200
    assert losses.max() == 9.5
    assert samples[losses.argmax()] == 12_345 * 8


def test_damaged_lines_and_values_without_number_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"samples": 8, "phase": "a", "loss": 2.0}\n'
        "broken\n[1]\n"
        '{"samples": 16, "phase": "a", "loss": NaN}\n'
        '{"samples": "x", "loss": 1}\n'
        '{"samples": 24, "phase": "a"}\n'
        '{"samples": 32, "phase": "a", "loss": 1.5}\n'
        '{"samples": 40, "phase": "a", "lo'
    )
    series = read_series(tmp_path, ["loss"])
    assert series.samples.tolist() == [8, 16, 24, 32]
    samples, losses = series.curve("loss", 0)
    assert (samples.tolist(), losses.tolist()) == ([8, 32], [2.0, 1.5])
    assert len(read_series(tmp_path / "none", ["loss"])) == 0
