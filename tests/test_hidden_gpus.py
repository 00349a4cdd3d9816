"""The programs of tests that are not marked `gpu` see no GPU, whatever the machine has."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from support.hidden_gpus import hidden_gpus, show_gpus

LOOK = "import os; print(os.environ.get('CUDA_VISIBLE_DEVICES', 'all'))"


def seen_by_a_program() -> str:
    return subprocess.run([sys.executable, "-c", LOOK], stdout=subprocess.PIPE, text=True, check=True).stdout


def test_programs_see_no_gpu_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with hidden_gpus(present=True):
        assert seen_by_a_program() == "\n"
    assert seen_by_a_program() == "0\n"


def test_nothing_changes_without_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable would keep the programs from being forked from the warm server."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with hidden_gpus(present=False):
        assert "CUDA_VISIBLE_DEVICES" not in os.environ


@pytest.mark.parametrize(("given", "seen"), [(None, "all\n"), ("2,3", "2,3\n")])
def test_programs_of_a_gpu_test_see_what_pytest_was_given(
    given: str | None, seen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("support.hidden_gpus._given", given)
    with hidden_gpus(present=True):
        show_gpus(monkeypatch)
        assert seen_by_a_program() == seen
