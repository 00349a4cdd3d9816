"""The digest by which a report knows whether a rehearsal is one of its run's job."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.job_texts import BASE

from flipscale.config import load_job
from flipscale.rehearsal.request import digest_of_step

OF_BASE = "f729775265cda7c3981d5f13c2e4c35a0bc11b26ef1a6b101b202df79d6ba7d7"


@pytest.mark.parametrize(
    ("overrides", "same"),
    [
        ((), True),
        (("phases.0.schedule=constant_cooldown", "phases.0.cooldown=64M"), True),
        (("cluster.nodes=3",), True),
        (("phases.0.micro_batch=64",), False),
        (("phases.0.mask_ratio=0.25",), False),
    ],
)
def test_digest_is_that_of_earlier_versions_and_changes_with_the_step(
    overrides: tuple[str, ...], same: bool, tmp_path: Path
) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(BASE)
    assert (digest_of_step(load_job(file, overrides)) == OF_BASE) == same
