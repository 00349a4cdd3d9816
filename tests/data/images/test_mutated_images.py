"""Mutated images: no crash, no uncaught error, and one verdict over scales, libraries and restarts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from support.mutations import image_seeds
from support.verdicts import mutation, verdict, verdicts

TESTS = Path(__file__).parents[2]


def test_verdicts_depend_on_the_bytes_only():
    """A seeded sample of the mutation run below."""
    count = 12 * len(image_seeds())
    found = {number: verdicts(mutation(number, 0)) for number in range(count)}
    assert [number for number, verdict_set in found.items() if len(verdict_set) != 1] == []
    good = sum(verdict_set == {"good"} for verdict_set in found.values())
    assert count / 5 < good < 4 * count / 5
    assert "\n" not in "".join(text for verdict_set in found.values() for text in verdict_set)
    # Again, in another order.
    assert all(verdict(mutation(number, 0), 0) in found[number] for number in reversed(range(count)))


def test_every_seed_is_as_its_kind_says():
    refused = {"jpeg lossless", "jpeg lossless grey", "tiff jpeg", "tiff float"}
    for kind, data in image_seeds().items():
        (only,) = verdicts(data)
        assert (only == "good") == (kind not in refused), (kind, only)


def read(path: Path) -> dict[int, list[str]]:
    return dict(json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_a_hundred_thousand_mutations_crash_nothing(tmp_path):
    """Processes of their own decode; one reads the inputs again, in reverse, as after a restart."""
    count = 100_000
    for order in ("all", "reverse"):
        arguments = [str(tmp_path / order), "1", "0", str(count), order]
        command = [sys.executable, "-m", "support.verdicts", *arguments]
        ended = subprocess.run(command, cwd=TESTS, stderr=subprocess.PIPE, text=True)
        assert ended.returncode == 0, f"see {tmp_path / order}.input: {ended.stderr[-2000:]}"

    found, again = read(tmp_path / "all"), read(tmp_path / "reverse")
    assert len(found) == len(again) == count
    assert [number for number, texts in found.items() if len(texts) != 1 or texts != again[number]] == []
    outcomes = Counter("good" if texts == ["good"] else "bad" for texts in found.values())
    assert min(outcomes.values()) > count / 5
