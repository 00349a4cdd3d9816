"""`flipscale submit` on run directories of others: no field of any file becomes a command or a traceback."""

from __future__ import annotations

import copy
import json
import random
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.fake_slurm import FakeSlurm
from support.made_once import made_once
from support.submitting import WriteSite, submit
from support.tiny_run import TinyRun

from flipscale import slurm
from flipscale.config import Site, load_job
from flipscale.errors import UserError
from flipscale.runs.directory import RunDirectory
from flipscale.runs.submissions import tail_submissions

HOSTILE: tuple[Any, ...] = (
    "n1\ntouch stolen",
    "n1\u2028touch stolen",
    "$(touch stolen)",
    "'; touch stolen; '",
    "--me",
    "",
    "\0",
    "\ud800",
    "\x1b[2J",
    "²",
    "9" * 99,
    7,
    -1,
    1.5,
    10**30,
    float("nan"),
    None,
    True,
    [],
    {},
    ["a\nb"],
    {"a\nb": 1},
)
LONGEST_REFUSAL = 4000
SHAPES = (b"", b"{", b"\0" * 64, b"\xff\xfe", b"[]\n", b"{}\n", b"null\n", b"[" * 100_000, None)
"""The contents of a broken file; None stands for a directory in its place."""

LINE: dict[str, Any] = {
    "time": 1.0,
    "cluster": "slurm",
    "job_id": "5",
    "nodes": 1,
    "processes_per_node": 1,
    "partition": "low",
    "time_limit": 600,
    "accounting": False,
    "dependency": None,
    "site": {"name": "here", "exclude": ["n9"], "setup": ["module load x"], "environment": {"A": "b"}},
}


@pytest.fixture
def run(tiny_run: Callable[..., TinyRun], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has trained, and was submitted and killed; it blames a node twice."""
    tiny = tiny_run(cluster={"gpus_per_node": 1})

    def train(root: Path) -> None:
        assert tiny.train(f"output={root}", "phases.0.samples=160", "phases.1.samples=80").returncode == 0

    trained = made_once("hostile run", train, tmp_path_factory)
    shutil.copytree(trained, tiny.output)
    job = yaml.safe_load((tiny.output / "job.yaml").read_text()) | {"output": str(tiny.output)}
    (tiny.output / "job.yaml").write_text(yaml.safe_dump(job))

    # There is work left: the last checkpoint is gone.
    shutil.rmtree(tiny.output / "checkpoints/samples_000000000240")
    (tiny.output / "checkpoints/LATEST").write_text("samples_000000000192\n")

    line = json.loads((tiny.output / "ledger.jsonl").read_text().splitlines()[0]) | {"suspects": ["n1", "n2"]}
    other = line | {"segment": 1, "suspects": ["n2"]}
    (tiny.output / "ledger.jsonl").write_text(f"{json.dumps(line)}\n{json.dumps(other)}\n")
    (tiny.output / "segment.json").write_text(
        json.dumps(line | {"segment": 2, "reason": "killed", "ended": ""})
    )
    (tiny.output / "submissions.jsonl").write_text(json.dumps(LINE) + "\n")
    return tiny.output


def read(path: Path) -> Any:
    """Return the document of a file; the list of its lines for a .jsonl."""
    if path.suffix == ".yaml":
        return yaml.safe_load(path.read_text())
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    return json.loads(path.read_text())


def write(path: Path, document: Any) -> None:
    if path.suffix == ".yaml":
        path.write_text(yaml.safe_dump(document))
    elif path.suffix == ".jsonl" and isinstance(document, list):
        path.write_text("".join(json.dumps(line) + "\n" for line in document))
    else:
        path.write_text(json.dumps(document))


def places(document: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to every field of a document; of a list only the first two items."""
    yield at
    if isinstance(document, dict):
        for key, value in document.items():
            yield from places(value, (*at, key))
    elif isinstance(document, list):
        for number, value in enumerate(document[:2]):
            yield from places(value, (*at, number))


def replaced(document: Any, place: Sequence[Any], value: Any) -> Any:
    if not place:
        return value
    changed = copy.deepcopy(document)
    node = changed
    for part in place[:-1]:
        node = node[part]
    node[place[-1]] = value
    return changed


class Attempt:
    """Submits a run again and again, each time with one damage, and judges what comes of it."""

    def __init__(self, run: Path, fake: FakeSlurm, site: Path, cwd: Path) -> None:
        self.run = run
        self.fake = fake
        self.site = site
        self.cwd = cwd
        self.originals = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
        self.submitted = 0

    def files(self) -> list[Path]:
        return sorted(path for path in self.originals if path.suffix in (".json", ".jsonl", ".yaml"))

    def __call__(self, label: object) -> None:
        (self.fake.root / "submitted").unlink(missing_ok=True)
        refusal = ""
        try:
            submit(self.run, site=self.site)
        except UserError as error:
            refusal = str(error)
        except Exception as error:
            raise AssertionError(f"{label}: {type(error).__name__}: {error}") from error
        else:
            self.submitted += 1
            self.check(self.fake.submitted(), label)

        assert not refusal or refusal.isprintable(), (label, refusal)
        assert len(refusal) < LONGEST_REFUSAL, label
        assert not (self.cwd / "stolen").exists(), label

    def check(self, script: str, label: object) -> None:
        """Check that the words of every line are those of a harmless run's script, but for quoted values."""
        lines = script.removesuffix("\n").split("\n")
        assert lines == script.splitlines(), label
        for line in lines:
            words = shlex.split(line.removeprefix("#SBATCH "), posix=True)
            assert not words or words[0] != "touch", label
            if line.startswith("#SBATCH --exclude="):
                nodes = line.removeprefix("#SBATCH --exclude=").split(",")
                assert all(map(slurm.is_node_name, nodes)), label

    def restore(self) -> None:
        for path, content in self.originals.items():
            if path.is_dir():
                path.rmdir()
            if not path.exists() or path.read_bytes() != content:
                path.write_bytes(content)


@pytest.fixture
def attempt(
    run: Path, fake: FakeSlurm, site: WriteSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Attempt:
    working = tmp_path / "working"
    working.mkdir()
    monkeypatch.chdir(working)
    return Attempt(run, fake, site(), working)


def damages(attempt: Attempt) -> list[tuple[Path, tuple[Any, ...], Any]]:
    attempt.restore()
    return [
        (path, place, value) for path in attempt.files() for place in places(read(path)) for value in HOSTILE
    ]


def damage(attempt: Attempt, chosen: Sequence[tuple[Path, tuple[Any, ...], Any]]) -> None:
    for path, place, value in chosen:
        attempt.restore()
        write(path, replaced(read(path), place, value))
        attempt((path.relative_to(attempt.run), place, value))
    for path in attempt.files():
        for shape in SHAPES:
            attempt.restore()
            path.unlink()
            if shape is None:
                path.mkdir()
            else:
                path.write_bytes(shape)
            attempt((path.relative_to(attempt.run), shape and shape[:10]))


@pytest.mark.slow
def test_some_damaged_fields_become_neither_commands_nor_tracebacks(attempt: Attempt):
    attempt("whole")
    assert attempt.submitted == 1
    assert "#SBATCH --exclude=n2\n" in attempt.fake.submitted()
    damage(attempt, random.Random(14).sample(damages(attempt), 20))
    assert attempt.submitted > 5


@pytest.mark.parametrize("job_id", ["\0", "\ud800", "../" * 9, "9" * 999])
def test_job_id_of_a_killed_segment_need_not_be_the_name_of_a_file(attempt: Attempt, job_id: str):
    """The log of the job, which says why Slurm ended it, is looked for by the id."""
    segment = attempt.run / "segment.json"
    write(segment, read(segment) | {"job_id": job_id})
    attempt(job_id)
    assert attempt.submitted == 1


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_no_field_of_any_file_is_a_command_or_a_traceback(attempt: Attempt):
    every = damages(attempt)
    assert len(every) > 3000
    damage(attempt, every)
    assert attempt.submitted > 100


@pytest.mark.parametrize(
    "node",
    ["n1\ntouch stolen", "n1 --exclusive", "-n1", "n1,n2", "n[1-2]", "n1\u2028", "", " ", "n" * 300, "n1'"],
)
def test_only_a_node_name_is_excluded(attempt: Attempt, node: str):
    ledger = attempt.run / "ledger.jsonl"
    lines = [{**line, "suspects": [node, "n3"]} for line in read(ledger)]
    write(ledger, lines)
    attempt(node)
    assert attempt.submitted == 1
    assert "#SBATCH --exclude=n3\n" in attempt.fake.submitted()


@pytest.mark.parametrize("name", ["samples_good", "samples_²", "samples_", "samples_-5", "samples_5 copy"])
def test_a_directory_with_another_name_does_not_count_as_a_checkpoint(attempt: Attempt, name: str):
    copied = attempt.run / "checkpoints" / name
    copied.mkdir()
    (copied / "manifest.json").write_text("{}")
    attempt(name)
    assert attempt.submitted == 1


@pytest.mark.parametrize(
    "job_id", ["--me", "-u root", "5; touch stolen", "5\n6", "²", "", "1" * 30, "5_x", "5,6"]
)
def test_only_a_job_id_reaches_slurm(fake: FakeSlurm, attempt: Attempt, job_id: str):
    write(attempt.run / "submissions.jsonl", [LINE | {"job_id": job_id}])
    assert [job.job_id for job in tail_submissions(RunDirectory(attempt.run), 10**6)] == [""]
    with pytest.raises(UserError, match=r"submissions.jsonl, line 1 is damaged: its job_id: .*restore"):
        submit(attempt.run, site=attempt.site)

    for name in ("scontrol", "sacct", "scancel", "squeue"):
        command = fake.root / "bin" / name
        command.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >> {fake.root}/asked\n')
        command.chmod(0o755)

    assert slurm.query_job(job_id) is None
    assert slurm.query_accounting([job_id]) == {}
    slurm.cancel_jobs([job_id])
    assert not (fake.root / "asked").exists()
    assert slurm.query_accounting(["12_3", job_id]) == {}
    slurm.cancel_jobs(["12_3", job_id], waiting=True)
    assert (fake.root / "asked").read_text().splitlines()[-1] == "--state=PENDING 12_3"


def test_the_site_of_an_older_submission_need_not_be_known(attempt: Attempt):
    newer = LINE | {"site": {"name": "here", "a_key_of_later": 1}}
    write(attempt.run / "submissions.jsonl", [newer])
    attempt(newer)
    assert attempt.submitted == 1
    assert load_job(attempt.run / "job.yaml").name == "tiny"
    assert Site.model_validate(LINE["site"]).exclude == ("n9",)
