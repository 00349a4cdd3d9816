"""No text of data, other machines or files can steer the terminal."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import unicodedata

import pytest
from support.run_in_files import FakeSlurm, RunInFiles
from support.status_times import ago, utc

from flipscale.addresses import Formatter
from flipscale.cli.cancel import cancel
from flipscale.cli.console import make_table, print_table, wide_console
from flipscale.cli.status import status
from flipscale.errors import UserError
from flipscale.terminal import print_json, printable, say

HOSTILE = "n1\x1b]0;title\x07\x1b[2J\x1b[1A\r\x08\x9b31m\u202egnp.exe\u2028row\x7f\ud800"


def steering(text: str) -> set[str]:
    """Return the characters that steer a terminal, by Unicode's own categories and bidirectional classes."""
    isolates = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    return {
        character
        for character in text
        if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")
        or unicodedata.bidirectional(character) in isolates
    }


def test_every_character_that_steers_is_escaped() -> None:
    everything = "".join(map(chr, range(0x110000)))
    assert steering(printable(everything, keep="")) == set()
    assert steering(printable(everything)) == {"\n", "\t"}
    assert printable(HOSTILE).startswith(r"n1\x1b]0;title\x07\x1b[2J")
    printable(everything).encode()  # a terminal gets UTF-8


@pytest.mark.parametrize(
    "text", ["a dog, naïve", "犬が走る", "🐕‍🦺 émoji", "كلب", "two\nlines\tand a tab", r"C:\new"]
)
def test_other_text_stays_as_it_is(text: str) -> None:
    assert printable(text) == text


def test_json_stays_json(capsys) -> None:
    print_json({HOSTILE[:-1]: HOSTILE[:-1]})
    printed = capsys.readouterr().out
    assert json.loads(printed) == {HOSTILE[:-1]: HOSTILE[:-1]}
    assert steering(printed) == {"\n"}


def test_lines_and_tables(capsys) -> None:
    say(HOSTILE)
    say(HOSTILE, error=True)
    print_table(("name", HOSTILE), [(HOSTILE, "x"), ("a\nb", "y")])
    wide_console().print(HOSTILE, make_table(["a"], [[HOSTILE]]))
    printed = capsys.readouterr()
    assert steering(printed.out + printed.err) == {"\n"}
    assert r"a\nb" in printed.out  # a cell cannot add a row


def test_logs() -> None:
    record = logging.LogRecord("x", logging.INFO, __file__, 1, "%s\nnext line", (HOSTILE,), None)
    assert steering(Formatter("%(message)s").format(record)) == {"\n"}


def hostile_run(run: RunInFiles) -> RunInFiles:
    run.segment(
        reason=HOSTILE, detail=HOSTILE, job_id=HOSTILE, nodes=[HOSTILE], suspects=[HOSTILE],
        host=HOSTILE, started=utc(ago(99)), ended=utc(ago(90)), samples_to=8,
    )  # fmt: skip
    run.open_segment(started=utc(ago(60)), attempt="8.0", nodes=[HOSTILE], host=HOSTILE)
    run.metrics(samples=16, phase=HOSTILE, time=ago(1), images_per_second=5.0)
    run.beat(0, "failed", at=ago(1), attempt="8.0", node=HOSTILE, kind="code", message=HOSTILE)
    return run.beat(1, "training", at=ago(900), attempt="8.0", node=HOSTILE)


def test_status_of_a_hostile_run(tmp_path, monkeypatch, capsys) -> None:
    slurm = FakeSlurm(tmp_path / "slurm", monkeypatch)
    run = hostile_run(RunInFiles.new(tmp_path / "first").submitted("8"))
    slurm.answers(f"8|RUNNING|{HOSTILE[:20]}|n1")
    status(run.path, as_json=False)
    page = capsys.readouterr().out
    assert steering(page) == {"\n"}
    assert r"n1\x1b]0;title" in page

    status(tmp_path, as_json=False)
    status(run.path, as_json=True)
    cancel(run.path)
    assert steering(capsys.readouterr().out) == {"\n"}


def test_error_of_a_command(tmp_path) -> None:
    missing = tmp_path / HOSTILE[:-1]
    command = [sys.executable, "-m", "flipscale", "status", str(missing)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert steering(done.stderr) == {"\n"}
    assert r"\x1b[2J" in done.stderr
    with pytest.raises(UserError):
        status(missing)
