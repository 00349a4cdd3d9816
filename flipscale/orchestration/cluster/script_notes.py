"""The lines of the batch script that note when it begins and leaves, which no process of the run can see."""

from __future__ import annotations

from typing import Final

from flipscale.runs.noted_starts import BEGAN, LEFT, NAME

# The shell does all of it, since the site's Python may be what does not start. It leaves last, also if Slurm
# ends it; only after SIGKILL there is no second note.
_LINES: Final = """\
flipscale_start="${{SLURM_ARRAY_JOB_ID:+${{SLURM_ARRAY_JOB_ID}}_}}${{SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}}"
flipscale_start="$flipscale_start.${{SLURM_RESTART_COUNT:-0}}"
flipscale_note() {{
  printf '{{"attempt": "%s", "%s": %(%s)T}}\\n' "$flipscale_start" "$1" -1 >> {run}/{name}
}}
flipscale_note {began}
trap 'flipscale_note {left}' EXIT
"""


def note_lines(run: str) -> list[str]:
    """Return the lines of bash that note the beginning, and the end once it comes.

    Args:
        run: Path of the run directory, quoted for the shell.
    """
    return _LINES.format(run=run, name=NAME, began=BEGAN, left=LEFT).splitlines()
