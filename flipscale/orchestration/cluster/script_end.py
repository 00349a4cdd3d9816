"""The last lines of the batch script, which leaves last: they have a job started again that nobody spoke for.

A process that is killed cannot have the job started again, and the others need time to notice its end. The
script outlives them all, and needs only the shell and scontrol for the usual case.
"""

from __future__ import annotations

from typing import Final

from flipscale.runs.heartbeat import DIRECTORY
from flipscale.runs.last_word import NAME

# - 0: the budget is spent, or the next start is arranged. 2: the input is wrong. 126, 127: no such Python.
# - Slurm ends this shell with the job if it cancels, preempts or requeues it; then no line below runs.
# - A person who stops a run gets what was asked for, so that Slurm calls the job completed.
# - Starts that opened a segment are bounded by the next start, which counts segments without progress.
# - If segments blame nodes, the site's python asks Slurm: it knows which nodes the next start avoids.
_LINES: Final = """\
code=$?
case $code in 0|2|126|127) exit $code;; esac
start="${{SLURM_ARRAY_JOB_ID:+${{SLURM_ARRAY_JOB_ID}}_}}${{SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}}"
restarts="${{SLURM_RESTART_COUNT:-0}}"
word={run}/{directory}/"$start.$restarts"/{name}
if grep -qsF '"kind": "stopped"' "$word"; then exit 0; fi
if [ -e "$word" ]; then exit $code; fi
opened=
for before in 0 1 2 3; do
  attempt="\\"attempt\\": \\"$start.$((restarts - before))\\""
  if grep -qsF "$attempt" {run}/segment.json {run}/ledger.jsonl; then opened=yes; fi
done
if [ "$restarts" -ge 3 ] && [ -z "$opened" ]; then
  echo "flipscale: four starts in a row ended before they could train; fix the cause and submit again" >&2
  exit $code
fi
echo "flipscale: the processes ended with code $code and did not say why; another start is requested" >&2
{request}
exit $code
"""
_REQUEUE: Final = """\
if grep -qsF '"suspects": ["' {run}/ledger.jsonl {run}/{directory}/"$start.$restarts"/*; then
  {ask}
  case $? in 0|{refused}) exit $code;; esac
fi
scontrol requeue "$SLURM_JOB_ID" || {ask}"""

REFUSED: Final = 3
"""The exit code of `segments.last_resort` if the job does not start again, whoever asks."""


def last_lines(run: str, python: str, *, requeues: bool) -> list[str]:
    """Return the lines of shell that follow the srun of all processes.

    Args:
        run: Path of the run directory, quoted for the shell.
        python: The command of Python, as a line of shell. It is used if a segment blames nodes, or if
            scontrol does not requeue the job; then it submits a job that follows.
        requeues: Whether the site requeues jobs; the alternative is a chain of jobs.
    """
    request = f"{python} -m flipscale.orchestration.segments.last_resort {run}"
    if requeues:
        request = _REQUEUE.format(run=run, directory=DIRECTORY, ask=request, refused=REFUSED)

    return _LINES.format(run=run, directory=DIRECTORY, name=NAME, request=request).splitlines()
