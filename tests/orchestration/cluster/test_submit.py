"""`flipscale submit` up to sbatch: the script, the record, and every refusal in one sentence."""

from __future__ import annotations

import fcntl
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.fake_slurm import CONFIG, FakeSlurm
from support.tiny_run import TinyRun

from flipscale.cli.submission import submit_jobs
from flipscale.config import Site, load_job, load_site
from flipscale.errors import UserError
from flipscale.orchestration.cluster.submission import read_submissions, submit_run
from flipscale.planning.plan import plan_job
from flipscale.planning.throughput import make_speed
from flipscale.runs.directory import run_directory

ROOT = Path(__file__).parents[3]
NO_JOBS = {"base", "evaluation"}
JOBS = [path for path in sorted(ROOT.glob("jobs/**/*.yaml")) if path.parent.name not in NO_JOBS]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    fake = FakeSlurm.make(tmp_path / "fake")
    monkeypatch.setenv("PATH", fake.path)
    monkeypatch.delenv("FLIPSCALE_SITE", raising=False)
    return fake


@pytest.fixture
def site(tmp_path: Path) -> Callable[..., Path]:
    def write(**changes: Any) -> Path:
        path = tmp_path / "site.yaml"
        path.write_text(yaml.safe_dump({"name": "here", "gpus_per_node": 0, "cores_per_node": 4, **changes}))
        return path

    return write


def submit(*arguments: Path | str, site: Path | None = None, **options: Any) -> None:
    defaults = {"cluster": "slurm", "at_most": None, "ask_nodes": False, "dry_run": False, "as_json": True}
    submit_jobs([str(argument) for argument in arguments], site, **(defaults | options))


def shown(capsys: pytest.CaptureFixture[str], *arguments: Path | str, **options: Any) -> dict[str, Any]:
    submit(*arguments, dry_run=True, **options)
    return json.loads(capsys.readouterr().out)


def check_syntax(script: str) -> None:
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("job", JOBS, ids=lambda path: str(path.relative_to(ROOT / "jobs")))
def test_every_job_shows_its_script_without_slurm(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("PATH", FakeSlurm.make(tmp_path / "bare", installed=False).path)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    script = shown(capsys, job)["script"]
    assert sorted(tmp_path.rglob("*")) == before
    check_syntax(script)
    cluster = load_job(job).cluster
    assert f"#SBATCH --nodes={cluster.nodes}\n" in script
    assert f"#SBATCH --ntasks-per-node={cluster.gpus_per_node}\n" in script
    assert f"#SBATCH --time={cluster.timeout // 60}\n" in script


@pytest.mark.parametrize("path", sorted(ROOT.glob("slurm/**/*.yaml")), ids=lambda path: path.stem)
def test_every_site_gives_a_script(
    path: Path, fake: FakeSlurm, tiny_run: Callable[..., TinyRun], capsys: pytest.CaptureFixture[str]
):
    site = load_site(path)
    gpus = site.gpus_per_node or 1
    cluster = {"nodes": 2, "gpus_per_node": gpus, "timeout": "36h"}
    job = tiny_run(data={"lanes": 16}, cluster=cluster).job
    script = shown(capsys, job, site=path)["script"]
    check_syntax(script)
    tasks = 1 if site.launcher == "torchrun" else gpus
    assert f"#SBATCH --ntasks-per-node={tasks}\n" in script
    assert f"#SBATCH --{'requeue' if site.restart == 'requeue' else 'no-requeue'}\n" in script
    assert f"#SBATCH --signal=USR2@{site.stop_before}\n" in script
    cores = site.cpus_per_process or (site.cores_per_node or 0) // gpus
    assert f"export SRUN_CPUS_PER_TASK={cores * gpus // tasks}\n" in script
    assert ("FLIPSCALE_PROCESSES_PER_NODE" in script) == (site.launcher == "torchrun")
    assert "--wckey=submitit" not in script
    assert f"--block-signal=USR2 {site.python or ''}" in script
    assert f"#SBATCH --time={min(site.time_limit or 36 * 3600, 36 * 3600) // 60}\n" in script
    lines = script.splitlines()
    assert [line for line in lines if line in site.setup] == list(site.setup)


def test_text_of_a_site_stays_text(
    fake: FakeSlurm, site: Callable[..., Path], tiny_run: Callable[..., TinyRun], tmp_path: Path
):
    run = tiny_run(name="a b's $(touch x)", cluster={"gpus_per_node": 1})
    job = tmp_path / "job.yaml"
    run.job.rename(job)
    hostile = "'; touch stolen; $(touch stolen) `touch stolen`"
    submit(job, site=site(environment={"TEXT": hostile}, partition="low", sbatch={"comment": hostile}))
    script = fake.submitted()
    check_syntax(script)
    # Run the script with commands that only note their arguments.
    for name in ("srun", "env"):
        stub = fake.root / "bin" / name
        stub.unlink()
        stub.write_text(f'#!/bin/sh\nprintf "%s\\n" "$TEXT" "$@" >> {fake.root}/told\n')
        stub.chmod(0o755)
    subprocess.run(["bash", "-c", script], check=True, cwd=tmp_path)
    told = (fake.root / "told").read_text()
    assert hostile in told.splitlines()
    assert f"{run.output}/logs" in told.splitlines()
    assert not (tmp_path / "stolen").exists()
    assert not (tmp_path / "x").exists()


def test_a_submission_is_recorded_and_the_run_directory_ready(
    fake: FakeSlurm,
    site: Callable[..., Path],
    tiny_run: Callable[..., TinyRun],
    capsys: pytest.CaptureFixture[str],
):
    run = tiny_run(cluster={"nodes": 2, "gpus_per_node": 1, "timeout": "1h"})
    submit(run.job, "seed=3", site=site(partition="low", time_limit="20min"))
    (told,) = json.loads(capsys.readouterr().out)["jobs"]
    assert (told["job_id"], told["time_limit_seconds"]) == ("7", 1200)
    assert told["next"] == f"flipscale status {run.output}"
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
    site: Callable[..., Path],
    tiny_run: Callable[..., TinyRun],
    capsys: pytest.CaptureFixture[str],
):
    run = tiny_run(cluster={"nodes": 2, "gpus_per_node": 2})
    gpus = site(gpus_per_node=2, gpu="h200-141gb")
    submit(run.job, site=gpus)
    (told,) = json.loads(capsys.readouterr().out)["jobs"]
    job = load_job(run.job)
    whole = plan_job(job, make_speed("h200-141gb", 4)).seconds
    assert told["expected_seconds"] == pytest.approx(whole)
    total = sum(phase.samples for phase in job.phases)
    checkpoint = run.output / "checkpoints" / f"samples_{total // 4:012d}"
    checkpoint.mkdir()
    (checkpoint / "manifest.json").touch()
    submit(run.job, site=gpus, as_json=False)
    assert "of training on 4 x h200-141gb" in capsys.readouterr().out
    submit(run.job, site=gpus)
    (told,) = json.loads(capsys.readouterr().out)["jobs"]
    assert told["expected_seconds"] == pytest.approx(whole * 3 / 4)
    with pytest.raises(UserError, match="there is no GPU 'h100' in the table; did you mean h100-80gb"):
        submit(run.job, site=site(gpus_per_node=2, gpu="h100"))


def test_a_run_is_submitted_once(
    fake: FakeSlurm, site: Callable[..., Path], tiny_run: Callable[..., TinyRun]
):
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
        with pytest.raises(UserError, match=r"another submission of .* is under way"):
            submit(job, site=site())


def test_nodes_blamed_twice_are_left_out(
    fake: FakeSlurm, site: Callable[..., Path], tiny_run: Callable[..., TinyRun]
):
    run = tiny_run(cluster={"gpus_per_node": 1})
    submit(run.job, site=site())
    lines = [{"suspects": ["n1", "n2"]}, {"suspects": ["n2"]}, {}, {"suspects": ["n4", "n4"]}]
    (run.output / "ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    submit(run.job, site=site(exclude=["n9"]))
    assert "#SBATCH --exclude=n9,n2\n" in fake.submitted()


def test_several_jobs_are_an_array_in_which_each_has_its_own_run(
    fake: FakeSlurm, site: Callable[..., Path], tiny_run: Callable[..., TinyRun], tmp_path: Path
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


@pytest.mark.parametrize(
    ("on", "sentence"),
    [
        (
            {"partition": "lwo"},
            "there is no partition lwo (site here); this cluster has closed, lost, low, short",
        ),
        ({"partition": "closed"}, "the partition closed is DOWN"),
        (
            {"partition": "short"},
            "the time limit of 60 min is above the 30 min that the partition short gives",
        ),
        ({"partition": "short", "time_limit": "30min"}, "4 nodes, and the partition short has MaxNodes 2"),
        ({"partition": "lost"}, "are cancelled (PreemptMode=CANCEL), never requeued; set restart: chain"),
        ({"stop_before": "1h"}, "leaves no time to train"),
        ({"cpus_per_process": 9}, "1 processes of 9 cores need more than the 4 cores of a node"),
        ({"gpus_per_node": 1, "processes_per_node": 3}, "12 processes cannot share data.lanes = 8 evenly"),
    ],
)
def test_what_the_cluster_would_refuse_is_refused_before(
    on: dict[str, Any],
    sentence: str,
    fake: FakeSlurm,
    site: Callable[..., Path],
    tiny_run: Callable[..., TinyRun],
):
    run = tiny_run(cluster={"nodes": 4, "gpus_per_node": 1, "timeout": "1h"})
    with pytest.raises(UserError) as raised:
        submit(run.job, site=site(**on))
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not run.output.exists()
    assert not fake.submitted()


def test_what_slurm_says_is_passed_on(
    fake: FakeSlurm, site: Callable[..., Path], tiny_run: Callable[..., TinyRun]
):
    run = tiny_run(cluster={"gpus_per_node": 1})
    fake.answers(refusal="sbatch: error: Batch job submission failed: Invalid account\n")
    with pytest.raises(UserError) as raised:
        submit(run.job, site=site())
    assert str(raised.value) == "Slurm refused the job: Batch job submission failed: Invalid account"
    assert list((run.output / "logs").iterdir()) == []
    assert read_submissions(run_directory(load_job(run.job))) == []
    fake.answers(refusal="")
    submit(run.job, site=site())
    assert len(read_submissions(run_directory(load_job(run.job)))) == 1


def test_nodes_are_asked_for_the_run_directory(
    fake: FakeSlurm,
    site: Callable[..., Path],
    tiny_run: Callable[..., TinyRun],
    capsys: pytest.CaptureFixture[str],
):
    run = tiny_run(cluster={"gpus_per_node": 1})
    blind = "flipscale: n2 does not see the run directory, which must lie on ..."
    fake.answers(nodes=f"srun: x\n{blind}\n", nodes_exit="66")
    with pytest.raises(UserError, match=r"^n2 does not see the run directory"):
        submit(run.job, site=site(), ask_nodes=True)
    assert not run.output.exists()
    fake.answers(nodes="srun: error: Unable to allocate resources\n", nodes_exit="1")
    submit(run.job, site=site(), ask_nodes=True)
    assert "no nodes could be asked" in capsys.readouterr().err


def test_without_slurm_the_way_out_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_run: Callable[..., TinyRun]
):
    monkeypatch.setenv("PATH", FakeSlurm.make(tmp_path / "bare", installed=False).path)
    with pytest.raises(UserError, match=r"there is no sbatch on PATH; .* --cluster local"):
        submit(tiny_run().job)


def test_what_settings_mean_is_shown(
    fake: FakeSlurm,
    site: Callable[..., Path],
    tiny_run: Callable[..., TinyRun],
    capsys: pytest.CaptureFixture[str],
):
    job = tiny_run(cluster={"gpus_per_node": 1, "timeout": "20min"}).job

    def findings(**on: Any) -> dict[str, tuple[str, str]]:
        rows = shown(capsys, job, site=site(**on))["preflight"]
        return {row["check"]: (row["level"], row["text"]) for row in rows}

    assert findings()["PreemptMode"][1].startswith("REQUEUE, GraceTime 15 s")
    assert "TERM" in findings()["signal"][1]
    assert findings(partition="short")["PreemptMode"][0] == "warning"  # no grace
    fake.answers(
        config=CONFIG.replace("JobRequeue              = 1", "JobRequeue = 0").replace(
            "(null)", "preempt_send_user_signal"
        )
    )
    assert "--requeue overrides" in findings()["restart"][1]
    assert "USR2" in findings()["signal"][1].split(";")[0]
    assert findings(partition="lost", restart="chain")["PreemptMode"][0] == "ok"
    fake.answers(config=CONFIG.replace("preempt/partition_prio", "preempt/none"))
    assert findings()["PreemptMode"][1].startswith("OFF")
