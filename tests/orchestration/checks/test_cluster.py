"""The checks of a cluster's settings before a submission, and of nodes with `--check-nodes`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from support.fake_slurm import CONFIG, FakeSlurm
from support.submitting import WriteSite, dry_run, submit
from support.tiny_run import TinyRun

from flipscale.errors import UserError


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
    on: dict[str, Any], sentence: str, fake: FakeSlurm, site: WriteSite, tiny_run: Callable[..., TinyRun]
):
    run = tiny_run(cluster={"nodes": 4, "gpus_per_node": 1, "timeout": "1h"})

    with pytest.raises(UserError) as raised:
        submit(run.job, site=site(**on))

    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not run.output.exists()
    assert not fake.submitted()


def test_nodes_are_asked_for_the_run_directory(
    fake: FakeSlurm,
    site: WriteSite,
    tiny_run: Callable[..., TinyRun],
    capsys: pytest.CaptureFixture[str],
):
    run = tiny_run(cluster={"gpus_per_node": 1})

    blind = "flipscale: n2 does not see the run directory, which must be on ..."
    fake.answers(nodes=f"srun: x\n{blind}\n", nodes_exit="66")
    with pytest.raises(UserError, match=r"^n2 does not see the run directory"):
        submit(run.job, site=site(), check_nodes=True)
    assert not run.output.exists()

    fake.answers(nodes="srun: error: Unable to allocate resources\n", nodes_exit="1")
    submit(run.job, site=site(), check_nodes=True)
    assert "no nodes could be asked" in capsys.readouterr().err


def test_nodes_without_scontrol_are_named(
    fake: FakeSlurm,
    site: WriteSite,
    tiny_run: Callable[..., TinyRun],
    capsys: pytest.CaptureFixture[str],
):
    """A stand-in for srun runs the command of the task, as two nodes of which one has no scontrol."""
    lacking = fake.root / "lacking"
    lacking.mkdir()
    for tool in ("sh", "sleep"):
        (lacking / tool).symlink_to(fake.root / "bin" / tool)
    srun = fake.root / "bin/srun"
    srun.write_text(
        "#!/bin/bash\n"
        'SLURMD_NODENAME=n1 "${@: -3}" || exit $?\n'
        f'export SLURMD_NODENAME=n2; PATH={lacking} exec "${{@: -3}}"\n'
    )

    submit(tiny_run(cluster={"gpus_per_node": 1}).job, site=site(), check_nodes=True)

    shown = capsys.readouterr()
    assert "nodes: scontrol is not on PATH of n2, so that a job cannot requeue itself" in shown.err
    assert fake.submitted()


def test_what_settings_mean_is_shown(
    fake: FakeSlurm,
    site: WriteSite,
    tiny_run: Callable[..., TinyRun],
    capsys: pytest.CaptureFixture[str],
):
    job = tiny_run(cluster={"gpus_per_node": 1, "timeout": "20min"}).job

    def findings(**on: Any) -> dict[str, tuple[str, str]]:
        rows = dry_run(capsys, job, site=site(**on))["preflight"]
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
