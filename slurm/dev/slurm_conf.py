"""The options and ports of a development cluster, and the configuration files that Slurm reads."""

from __future__ import annotations

import os
import pwd
import random
from dataclasses import dataclass
from pathlib import Path

from processes import is_free

# Below the ports that the kernel gives to outgoing connections: none of them takes a port between its choice
# and the start of its daemon. Also below those by which the processes of runs meet.
PORTS = range(15000, 25000)
# The jobs of two clusters on one host have different ids: their processes meet on ports that come from these.
_JOBS_PER_CLUSTER = 1000


@dataclass(frozen=True)
class Settings:
    """The options of `cluster up`.

    Attributes:
        nodes: Number of emulated nodes.
        accounting: Whether slurmdbd runs.
        grace: Seconds from the TERM of a preemption to its KILL.
        kill_wait: Seconds from any other TERM to its KILL.
        slurmd_timeout: Seconds of silence until a node is down.
        bind_cores: Whether srun binds each process to its cores.
        conf: Further lines for slurm.conf.
    """

    nodes: int = 2
    accounting: bool = False
    grace: int = 15
    kill_wait: int = 10
    slurmd_timeout: int = 20
    bind_cores: bool = False
    conf: tuple[str, ...] = ()

    @property
    def node_names(self) -> list[str]:
        """The names of the nodes: n1, n2, ..."""
        return [f"n{number}" for number in range(1, self.nodes + 1)]


@dataclass(frozen=True)
class Ports:
    """The TCP ports of one cluster; the accounting daemon has one even if it does not run."""

    controller: int
    accounting: int
    nodes: tuple[int, ...]

    @classmethod
    def choose(cls, nodes: int) -> Ports:
        """Return free ports, drawn at random: clusters that start at the same time then differ."""
        free = (port for port in random.sample(PORTS, len(PORTS)) if is_free(port))
        return cls(next(free), next(free), tuple(next(free) for _ in range(nodes)))

    def all(self) -> tuple[int, ...]:
        """Return every port of the cluster."""
        return (self.controller, self.accounting, *self.nodes)


def slurm_conf(directory: Path, name: str, settings: Settings, ports: Ports, hardware: str) -> str:
    """Return the text of slurm.conf.

    Args:
        directory: The directory of the cluster.
        name: The ClusterName.
        settings: The options of `up`.
        ports: The ports of the cluster.
        hardware: Output of `slurmd -C`. Every emulated node has the whole host; Slurm refuses more.
    """
    keys = ("CPUs=", "Boards=", "SocketsPerBoard=", "CoresPerSocket=", "ThreadsPerCore=", "RealMemory=")
    host = " ".join(field for field in hardware.split() if field.startswith(keys))
    user = user_name()
    # With task/affinity the processes of a job get the first cores of each node: all nodes are this host, so
    # that a job on two nodes would compute on half of its cores.
    binding = "affinity" if settings.bind_cores else "none"

    nodes = "".join(
        f"NodeName={node} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} {host} State=UNKNOWN\n"
        for node, port in zip(settings.node_names, ports.nodes, strict=True)
    )

    members = ",".join(settings.node_names)
    # After MessageTimeout (default: 10 s) the controller repeats a message. A busy machine may answer later.
    # Then the next start of a job gets the signal that was meant for the start before, and is requeued.
    low_priority = f"PriorityTier=1 PreemptMode=REQUEUE GraceTime={settings.grace}"

    return f"""\
ClusterName={name}
SlurmctldHost=localhost
SlurmctldPort={ports.controller}
FirstJobId={1 + _JOBS_PER_CLUSTER * (ports.controller - PORTS.start)}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={directory}/munge/socket
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool-%n
SlurmctldPidFile={directory}/run/slurmctld.pid
SlurmdPidFile={directory}/run/%n.pid
SlurmctldLogFile={directory}/log/slurmctld.log
SlurmdLogFile={directory}/log/%n.log
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
ProctrackType=proctrack/linuxproc
TaskPlugin=task/{binding}
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait={settings.kill_wait}
SlurmdTimeout={settings.slurmd_timeout}
MessageTimeout=60
MinJobAge=86400
{_accounting(directory, ports) if settings.accounting else ""}{nodes}\
PartitionName=low Nodes={members} Default=YES MaxTime=INFINITE State=UP {low_priority}
PartitionName=short Nodes={members} MaxTime=5 State=UP {low_priority}
PartitionName=high Nodes={members} MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
""" + "".join(f"{line}\n" for line in settings.conf)


def _accounting(directory: Path, ports: Ports) -> str:
    return f"""\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
AccountingStoragePort={ports.accounting}
AccountingStoragePass={directory}/munge/socket
JobAcctGatherType=jobacct_gather/linux
"""


def slurmdbd_conf(directory: Path, ports: Ports, password: str) -> str:
    """Return the text of slurmdbd.conf; slurmdbd looks for it next to slurm.conf and wants it private."""
    return f"""\
AuthType=auth/munge
AuthInfo=socket={directory}/munge/socket
DbdHost=localhost
CommunicationParameters=NoInAddrAny
DbdPort={ports.accounting}
SlurmUser={user_name()}
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=slurm
StoragePass={password}
StorageLoc=slurm_acct_db
LogFile={directory}/log/slurmdbd.log
PidFile={directory}/run/slurmdbd.pid
"""


def user_name() -> str:
    """Return the user of this process, whatever LOGNAME says; all daemons and all jobs run as this user."""
    return pwd.getpwuid(os.getuid()).pw_name
