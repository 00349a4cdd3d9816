"""Slurm's refusals of a job, with the key of the site file that decides what Slurm does not like."""

from __future__ import annotations

import re

_PREFIXES = re.compile(r"sbatch: (?:error: )?|Batch job submission failed: |allocation failure: |[\n;]+")

_SIZE = "cpus_per_process, processes_per_node, memory_per_node, gpus_per_node, constraint or exclude"
_KEYS = (
    ("partition", "partition"),
    ("account", "account"),
    ("qos", "qos"),
    ("feature", "constraint"),
    ("reservation", "sbatch.reservation"),
    ("node name", "exclude"),
    ("generic resource", "gpus_per_node"),
    ("time limit", "time_limit"),
    ("memory", "memory_per_node"),
    ("cpu count", "cpus_per_process, cores_per_node or processes_per_node"),
    ("node configuration", _SIZE),
    ("node count", "cluster.nodes of the job, or partition"),
)
"""Words of Slurm's messages, and the keys of the site file that they are about; the first one counts."""


def explain_refusal(message: str) -> str:
    """Return the sentence about a job that Slurm does not take.

    Args:
        message: The message of sbatch. It often says the same twice, in two wordings.
    """
    parts = (part.strip() for part in _PREFIXES.split(message))
    reasons = list(dict.fromkeys(part for part in parts if part))
    text = "; ".join(reasons) or "it gave no reason"

    lower = text.lower()
    keys = next((keys for words, keys in _KEYS if words in lower), None)
    fix = f"; correct {keys} in the site file" if keys else ""
    return f"Slurm refused the job: {text}{fix}"
