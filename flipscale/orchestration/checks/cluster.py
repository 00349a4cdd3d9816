"""The meaning of a cluster's own settings for a run: partition, limits, preemption, signals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from flipscale.config import Site
from flipscale.errors import UserError
from flipscale.formatting import format_minutes
from flipscale.orchestration.checks.finding import CheckWarning, Finding, run_check
from flipscale.orchestration.cluster.allocation import Allocation
from flipscale.slurm import parse_time_limit, read_configuration, read_partitions, sends_user_signal

_OLDEST = (20, 11)
"""The oldest release of Slurm that flipscale was tried with."""


@dataclass(frozen=True)
class ClusterSettings:
    """A cluster as `scontrol` describes it, and what a job requests from it.

    Attributes:
        settings: The controller's settings, by the names of slurm.conf.
        partitions: The fields of each partition, by its name.
        site: The site file of the job.
        allocation: The resources that the job requests.
    """

    settings: dict[str, str]
    partitions: Mapping[str, Mapping[str, str]]
    site: Site
    allocation: Allocation

    @property
    def partition(self) -> Mapping[str, str]:
        """The partition of the job.

        Raises:
            UserError: If the cluster has no partition of that name, or no default one.
        """
        name = self.site.partition
        if name is None:
            default = [each for each in self.partitions.values() if each.get("Default") == "YES"]
            if not default:
                raise UserError(
                    f"this cluster has no default partition; name one of {self._names()} in the site file"
                )
            return default[0]

        if name not in self.partitions:
            raise UserError(
                f"there is no partition {name} (site {self.site.name}); this cluster has {self._names()}"
            )
        return self.partitions[name]

    @property
    def preempt_mode(self) -> str:
        """What Slurm does with a preempted job of the partition; OFF if it preempts none."""
        if self.settings.get("PreemptType", "preempt/none").endswith("none"):
            return "OFF"
        return self.partition.get("PreemptMode", self.settings.get("PreemptMode", "OFF")).split(",")[-1]

    @property
    def grace_seconds(self) -> int:
        """The seconds from a preemption's first signal to the end of the job."""
        return int(self.partition.get("GraceTime", "0").split()[0])

    def _names(self) -> str:
        return ", ".join(sorted(self.partitions))


def examine_cluster(site: Site, allocation: Allocation) -> list[Finding]:
    """Check a job against the settings of the cluster, with two questions to Slurm.

    Raises:
        SlurmError: If Slurm does not answer.
        UserError: If Slurm's commands are not installed.
    """
    cluster = ClusterSettings(read_configuration(), read_partitions(), site, allocation)
    checks: tuple[tuple[str, Callable[[ClusterSettings], str]], ...] = (
        ("Slurm", _version),
        ("partition", _partition),
        ("restart", _restart),
        ("PreemptMode", _preemption),
        ("signal", _signal),
        ("KillWait", _kill_wait),
    )
    findings = [run_check(name, lambda check=check: check(cluster)) for name, check in checks]

    # An unknown partition fails several checks with the same message: keep the first.
    first = {finding.text: finding for finding in reversed(findings)}
    return [finding for finding in findings if first[finding.text] is finding]


def _version(cluster: ClusterSettings) -> str:
    version = cluster.settings.get("SLURM_VERSION", "")
    try:
        release = tuple(int(part) for part in version.split(".")[:2])
    except ValueError:
        raise CheckWarning(f"its version {version!r} is not one that this check can read") from None

    if release < _OLDEST:
        raise CheckWarning(f"{version} is older than {_OLDEST[0]}.{_OLDEST[1]}; not tried with flipscale")
    return version


def _partition(cluster: ClusterSettings) -> str:
    partition = cluster.partition
    allocation = cluster.allocation
    name = partition["PartitionName"]
    if partition.get("State", "UP") != "UP":
        raise UserError(f"the partition {name} is {partition['State']}; name another in the site file")

    most = parse_time_limit(partition.get("MaxTime", "UNLIMITED"))
    if most is not None and allocation.time_limit > most:
        raise UserError(
            f"the time limit of {format_minutes(allocation.time_limit)} is above the {format_minutes(most)} "
            f"that the partition {name} gives; set time_limit: {most // 60}min in the site file, and the run "
            "takes several segments"
        )

    for key in ("MaxNodes", "TotalNodes"):
        count = partition.get(key, "")
        if count.isdigit() and allocation.nodes > int(count):
            raise UserError(
                f"the job asks for {allocation.nodes} nodes, and the partition {name} has {key} {count}; "
                "lower cluster.nodes, or name another partition in the site file"
            )

    limit = "no time limit" if most is None else f"at most {format_minutes(most)}"
    return f"{name}: {limit}, {partition.get('TotalNodes', 'unknown')} nodes"


def _restart(cluster: ClusterSettings) -> str:
    if cluster.site.restart == "chain":
        return "chain: the next job is submitted to start when this one ends"
    if cluster.settings.get("JobRequeue") == "0":
        return "requeue: JobRequeue is 0 here, which --requeue overrides for this job"
    return (
        "requeue: the same job waits for nodes again; Slurm holds it for about two minutes first, and with "
        "restart: chain a waiting job follows within seconds"
    )


def _preemption(cluster: ClusterSettings) -> str:
    mode = cluster.preempt_mode
    name = cluster.partition["PartitionName"]
    grace = cluster.grace_seconds

    if mode == "OFF":
        return f"{mode}: jobs of {name} are not preempted"
    if mode == "CANCEL" and cluster.site.restart != "chain":
        raise UserError(
            f"jobs of {name} that are preempted are cancelled (PreemptMode=CANCEL), never requeued; set "
            "restart: chain in the site file"
        )
    if mode in ("SUSPEND", "GANG"):
        raise CheckWarning(
            f"{mode}: a preempted job of {name} is halted in place and keeps its memory, and its processes "
            "may give up waiting for each other"
        )
    if grace == 0:
        raise CheckWarning(
            f"{mode}, GraceTime 0: a preempted job has only KillWait to save; a save that takes longer loses "
            "what came after the checkpoint before"
        )
    return f"{mode}, GraceTime {grace} s: time to save; a save that takes longer leaves the checkpoint before"


def _signal(cluster: ClusterSettings) -> str:
    if cluster.preempt_mode == "OFF":
        preemption = "no preemption"
    else:
        preemption = f"preemption sends {'USR2' if sends_user_signal(cluster.settings) else 'TERM'}"
    return f"{preemption}; the time limit sends USR2 {cluster.site.stop_before} s before; the run obeys both"


def _kill_wait(cluster: ClusterSettings) -> str:
    return f"{cluster.settings.get('KillWait', 'unknown')}: from a TERM outside of preemption to the KILL"
