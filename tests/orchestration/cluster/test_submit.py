"""`flipscale submit` up to sbatch: the record of a submission, arrays, and refusals in one sentence."""

from __future__ import annotations

import fcntl
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.fake_slurm import FakeSlurm
from support.run_in_files import RunInFiles
from support.saved_checkpoints import save
from support.submitting import WriteSite, check_syntax, dry_run, submit
from support.tiny_run import TinyRun

from flipscale.config import Site, load_job, load_site
from flipscale.errors import UserError
from flipscale.orchestration.cluster.submit import submit_run
from flipscale.planning.plan import plan_job
from flipscale.planning.throughput import make_speed
from flipscale.progress import Progress
from flipscale.runs.directory import prepare, run_directory
from flipscale.runs.manifest import Manifest, StoredFile
from flipscale.runs.resume_point import find_resume_point
from flipscale.runs.submissions import read_submissions


def test_a_submission_is_recorded_and_the_run_directory_ready(
    fake: FakeSlurm,
    site: WriteSite,
    tiny_run: Callable[..., TinyRun],
    capsys: pytest.CaptureFixture[str],
):
    run = tiny_run(cluster={"nodes": 2, "gpus_per_node": 1, "timeout": "1h"})

    submit(run.job, "seed=3", site=site(partition="low", time_limit="20min"))
    (described,) = json.loads(capsys.readouterr().out)["jobs"]
    assert (described["job_id"], described["time_limit_seconds"]) == ("7", 1200)
    assert described["next"] == f"flipscale status {run.output}"

    directory = run_directory(load_job(run.job))
    (submission,) = read_submissions(directory)
    assert (submission.cluster, submission.job_id, submission.nodes) == ("slurm", "7", 2)
    assert (submission.partition, submission.time_limit, submission.dependency) == ("low", 1200, None)
    assert submission.site == load_site(site(partition="low", time_limit="20min"))
    assert load_job(directory.job).seed == 3
    assert (run.output / "token").exists()
    assert sorted(path.name for path in (run.output / "logs").iterdir()) == [
        "7_submission.sh",
        "7_submitted.pkl",
    ]


def test_the_expected_time_is_that_of_plan_for_what_is_left(
    fake: FakeSlurm,
    site: WriteSite,
    tiny_run: Callable[..., TinyRun],
    capsys: pytest.CaptureFixture[str],
):
    run = tiny_run(cluster={"nodes": 2, "gpus_per_node": 2})

    gpus = site(gpus_per_node=2, gpu="h200-141gb")
    submit(run.job, site=gpus)
    (described,) = json.loads(capsys.readouterr().out)["jobs"]

    job = load_job(run.job)
    whole = plan_job(job, make_speed(None, 4, gpus_per_node=2, site=load_site(gpus))).seconds
    assert described["expected_seconds"] == pytest.approx(whole)

    total = sum(phase.samples for phase in job.phases)
    checkpoint = run.output / "checkpoints" / f"samples_{total // 4:012d}"
    checkpoint.mkdir()
    (checkpoint / "manifest.json").touch()
    submit(run.job, site=gpus, as_json=False)
    assert "of training on 4 x h200-141gb" in capsys.readouterr().out
    submit(run.job, site=gpus)
    (described,) = json.loads(capsys.readouterr().out)["jobs"]
    assert described["expected_seconds"] == pytest.approx(whole * 3 / 4)

    with pytest.raises(UserError, match="there is no GPU 'h100' in the table; did you mean h100-80gb"):
        submit(run.job, site=site(gpus_per_node=2, gpu="h100"))


def test_edited_job_of_a_run_is_refused(fake: FakeSlurm, site: WriteSite, tiny_run: Callable[..., TinyRun]):
    job = tiny_run(cluster={"gpus_per_node": 1}).job
    run = run_directory(load_job(job))
    submit(job, site=site())
    checkpoint = run.checkpoints / "samples_000000000064"
    checkpoint.mkdir()
    document = load_job(job).model_dump(mode="json", exclude_none=True)
    manifest = Manifest(Progress(64), False, {"a.safetensors": StoredFile(1, "0" * 64)}, document, 1)
    (checkpoint / "manifest.json").write_text(manifest.to_json())

    fake.answers(queue="7|COMPLETED|None|n1\n")
    run.job.write_text(run.job.read_text().replace("seed: 0", "seed: 1"))
    with pytest.raises(UserError, match="seed was 0, now 1; change it back"):
        submit(run.path, site=site())


def test_a_run_is_submitted_once(fake: FakeSlurm, site: WriteSite, tiny_run: Callable[..., TinyRun]):
    job = tiny_run(cluster={"gpus_per_node": 1}).job
    run = run_directory(load_job(job))
    submit(job, site=site())

    fake.answers(queue="7|PENDING|Priority|\n")
    with pytest.raises(UserError, match=r"job 7 of .* is queued or running already; .*flipscale cancel"):
        submit(job, "logging.every=5 steps", site=site())
    assert str(load_job(run.job).logging.every) == "3 steps"  # the refused change is not recorded

    # A successor may wait for it.
    after = submit_run(run, load_job(job), Site(gpus_per_node=0), cluster="slurm", dependency="7")
    assert after.dependency == "7"
    assert "#SBATCH --dependency=afterany:7\n" in fake.submitted()

    fake.answers(queue="7|COMPLETED|None|n1\n")
    run.stop_file.touch()  # it was stopped
    submit(run.path, site=site())
    assert not run.stop_file.exists()
    assert len(read_submissions(run)) == 3

    with open(run.path / "submit.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=r"another submission of .* is in progress"):
            submit(job, site=site())


def test_nodes_blamed_twice_are_left_out(
    fake: FakeSlurm,
    site: WriteSite,
    tiny_run: Callable[..., TinyRun],
    capsys: pytest.CaptureFixture[str],
):
    run = tiny_run(cluster={"gpus_per_node": 1})
    submit(run.job, site=site())

    lines = [{"suspects": ["n1", "n2"]}, {"suspects": ["n2"]}, {}, {"suspects": ["n4", "n4"]}]
    (run.output / "ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    submit(run.job, site=site(exclude=["n9"]))
    assert "#SBATCH --exclude=n9,n2\n" in fake.submitted()
    assert "n2: two segments of the run blame it, and the job avoids it" in capsys.readouterr().err


@pytest.mark.parametrize("closed", [False, True])
def test_a_segment_that_has_no_line_yet_blames_as_well(
    fake: FakeSlurm, site: WriteSite, tiny_run: Callable[..., TinyRun], closed: bool
):
    """A hang is booked by the next start, which should not be on the node that hung."""
    tiny = tiny_run(cluster={"gpus_per_node": 1})
    submit(tiny.job, site=site())
    run = RunInFiles(tiny.output).segment(attempt="6.0", suspects=["n2"])
    run.open_segment(attempt="7.0", started="2026-01-01T00:00:00+00:00")
    run.beat(0, "failed", at=1.0, kind="hang", message="no step", suspects=("n2",))
    run.beat(1, "training", at=1.0)
    if closed:  # its start was killed between the line and the removal of the open segment
        run.segment(attempt="7.0", suspects=[])

    submit(tiny.job, site=site())
    assert ("#SBATCH --exclude=n2\n" in fake.submitted()) == (not closed)


@pytest.mark.parametrize(
    ("listed", "changes", "excluded", "why"),
    [
        (2, {}, None, "the job may use it, because too few other nodes remain"),
        (3, {}, "n2", "the job avoids it"),
        (4, {"exclude": ["n1"]}, "n1,n2", "the job avoids it"),
        (3, {"exclude": ["n1"]}, "n1", "because too few other nodes remain"),
        (4, {"exclude_blamed": False}, None, "because exclude_blamed is false"),
    ],
)
def test_blamed_nodes_never_lock_a_run_out(
    fake: FakeSlurm,
    site: WriteSite,
    tiny_run: Callable[..., TinyRun],
    capsys: pytest.CaptureFixture[str],
    listed: int,
    changes: dict[str, Any],
    excluded: str | None,
    why: str,
):
    # The job needs two nodes of those that the partition has; n9 belongs to another cluster.
    fake.answers(sinfo="".join(f"low*|n{number}|idle\n" for number in range(1, listed + 1)))
    run = tiny_run(cluster={"gpus_per_node": 1, "nodes": 2})
    submit(run.job, site=site())
    capsys.readouterr()
    lines = [{"suspects": ["n2", "n9"]}] * 3
    (run.output / "ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (fake.root / "submitted").unlink()

    submit(run.job, site=site(**changes))

    assert ("#SBATCH --exclude=" in fake.submitted()) == (excluded is not None)
    assert excluded is None or f"#SBATCH --exclude={excluded}\n" in fake.submitted()
    assert why in capsys.readouterr().err


def test_nodes_that_slurm_does_not_list_are_not_counted(
    fake: FakeSlurm, site: WriteSite, tiny_run: Callable[..., TinyRun]
):
    run = tiny_run(cluster={"gpus_per_node": 1, "nodes": 2})
    submit(run.job, site=site())
    (run.output / "ledger.jsonl").write_text(2 * (json.dumps({"suspects": ["n2"]}) + "\n"))
    states = {"n1": "idle", "n2": "mix", "n3": "drain", "n4": "down*"}
    fake.answers(sinfo="".join(f"low*|{node}|{state}\n" for node, state in states.items()))
    submit(run.job, site=site())
    assert "--exclude" not in fake.submitted()


def test_a_finished_run_is_not_submitted_again(
    fake: FakeSlurm, site: WriteSite, tiny_run: Callable[..., TinyRun]
):
    tiny = tiny_run(cluster={"gpus_per_node": 1})
    submit(tiny.job, site=site())
    run = run_directory(load_job(tiny.job))
    total = sum(phase.samples for phase in load_job(tiny.job).phases)
    checkpoint = run.checkpoints / f"samples_{total:012d}"
    checkpoint.mkdir()
    (checkpoint / "manifest.json").touch()
    before = fake.submitted()

    # Its job may still be leaving: what is done is said, not what could be cancelled.
    fake.answers(queue="7|COMPLETING||n1\n")
    for queue in ("7|COMPLETING||n1\n", ""):
        fake.answers(queue=queue)
        with pytest.raises(UserError, match=r"is done: its budget of 792 samples is spent; .*add a phase"):
            submit(run.path, site=site())
        with pytest.raises(UserError, match="is done: its budget"):
            submit_run(run, load_job(tiny.job), Site(gpus_per_node=0), cluster="slurm")
    assert fake.submitted() == before

    more = yaml.safe_load(tiny.job.read_text())
    more["phases"].append({**more["phases"][1], "name": "more"})
    tiny.job.write_text(yaml.safe_dump(more))
    submit(tiny.job, site=site())
    assert fake.submitted() != before


def test_a_run_without_its_checkpoints_is_submitted_only_to_begin_at_zero(
    fake: FakeSlurm,
    site: WriteSite,
    tiny_run: Callable[..., TinyRun],
    capsys: pytest.CaptureFixture[str],
):
    """The job would refuse to begin at zero, after its time in the queue."""
    job = tiny_run(cluster={"gpus_per_node": 1}).job
    run = run_directory(load_job(job))
    prepare(run, load_job(job), 0)
    RunInFiles(run.path).segment(samples_to=96, reason="stopped")
    run.checkpoints.rmdir()
    rows = dry_run(capsys, job, site=site())["preflight"]
    (row,) = (row for row in rows if row["check"] == "run directory")
    assert row["level"] == "error"
    assert row["text"].endswith("or add --from-zero to train all samples again")
    lost = r"ledger\.jsonl says that 96 samples .* or add --from-zero to train all samples again$"
    with pytest.raises(UserError, match=lost):
        submit(run.path, site=site())
    with pytest.raises(UserError, match=lost):
        submit_run(run, load_job(job), Site(gpus_per_node=0), cluster="slurm")

    fake.answers(refusal="no\n")
    with pytest.raises(UserError):
        submit(run.path, site=site(), from_zero=True)
    assert not run.zero_file.exists()

    fake.answers(refusal="")
    submit(run.path, site=site(), from_zero=True)
    assert run.zero_file.exists()
    submit(run.path, site=site())  # the start that was asked for has not come yet
    assert find_resume_point(run) is None


def test_a_dry_run_says_what_the_run_directory_would_refuse(
    fake: FakeSlurm,
    site: WriteSite,
    tiny_run: Callable[..., TinyRun],
    capsys: pytest.CaptureFixture[str],
):
    job = tiny_run(cluster={"gpus_per_node": 1}).job
    run = run_directory(load_job(job))
    run.path.mkdir()
    (run.path / "notes.txt").touch()

    def refusal(*overrides: str) -> str:
        rows = dry_run(capsys, job, *overrides, site=site())["preflight"]
        (row,) = (row for row in rows if row["check"] == "run directory")
        assert row["level"] == "error"
        with pytest.raises(UserError, match=re.escape(row["text"])):
            submit(job, *overrides, site=site())
        return row["text"]

    assert "is not empty and holds no run" in refusal()
    (run.path / "notes.txt").unlink()
    prepare(run, load_job(job), 0)
    assert "seed was 0, now 5" in refusal("seed=5")


def test_a_whole_checkpoint_is_not_given_up_by_a_submission(
    fake: FakeSlurm, site: WriteSite, tiny_run: Callable[..., TinyRun]
):
    job = tiny_run(cluster={"gpus_per_node": 1}).job
    run = run_directory(load_job(job))
    prepare(run, load_job(job), 0)
    save(run.checkpoints, 8, job=load_job(job).model_dump(mode="json"))
    with pytest.raises(UserError, match=r"--from-zero is for runs whose .* is whole; leave it out to resume"):
        submit(job, site=site(), from_zero=True)
    assert not run.zero_file.exists()


def test_several_jobs_are_an_array_in_which_each_has_its_own_run(
    fake: FakeSlurm, site: WriteSite, tiny_run: Callable[..., TinyRun], tmp_path: Path
):
    runs = [tiny_run(name=name, cluster={"gpus_per_node": 1}) for name in ("one", "two", "three")]

    submit(*(run.job for run in runs), "seed=5", site=site(), at_most=2)
    script = fake.submitted()
    check_syntax(script)
    assert "#SBATCH --array=0-2%2\n" in script

    for number, run in enumerate(runs):
        (submission,) = read_submissions(run_directory(load_job(run.job)))
        assert submission.job_id == f"7_{number}"
        assert load_job(run.output / "job.yaml").seed == 5

    (array,) = (runs[0].output / "logs").glob("array_*")
    assert [(array / str(number)).resolve() for number in range(3)] == [run.output / "logs" for run in runs]
    assert (array / "1/../token").exists()
    assert f"--output={array}/%a/%A_%a_0_log.out" in script

    with pytest.raises(UserError, match=r"2 of these jobs write to .*one; give each its own"):
        submit(runs[0].job, runs[0].job, site=site())

    bigger = tiny_run(name="bigger", cluster={"gpus_per_node": 1, "nodes": 2})
    with pytest.raises(UserError, match=r"tiny and tiny differ \(nodes 1 and 2\)"):
        submit(runs[0].job, bigger.job, site=site())


def test_message_of_slurm_is_passed_on(
    fake: FakeSlurm,
    site: WriteSite,
    tiny_run: Callable[..., TinyRun],
    capsys: pytest.CaptureFixture[str],
):
    run = tiny_run(cluster={"gpus_per_node": 1})

    fake.answers(refusal="sbatch: error: Batch job submission failed: Invalid account\n")
    with pytest.raises(UserError) as raised:
        submit(run.job, site=site())
    assert str(raised.value) == "Slurm refused the job: Invalid account; correct account in the site file"
    assert not run.output.exists()
    assert read_submissions(run_directory(load_job(run.job))) == []

    fake.answers(refusal="", verdict="sbatch: error: invalid partition specified: x\nallocation failure: y\n")
    with pytest.raises(UserError, match=r"the job: invalid partition specified: x; y; correct partition in"):
        submit(run.job, site=site())
    assert not run.output.exists()
    shown = dry_run(capsys, run.job, site=site())
    assert [line["level"] for line in shown["preflight"] if line["check"] == "sbatch"] == ["error"]

    fake.answers(verdict="")
    submit(run.job, site=site())
    assert (fake.root / "judged").read_text() in fake.submitted() + "\n"
    assert len(read_submissions(run_directory(load_job(run.job)))) == 1


def test_missing_slurm_is_named_with_the_alternative(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_run: Callable[..., TinyRun]
):
    monkeypatch.setenv("PATH", FakeSlurm.make(tmp_path / "bare", installed=False).path)
    with pytest.raises(UserError, match=r"there is no sbatch on PATH; .* --cluster local"):
        submit(tiny_run().job)
