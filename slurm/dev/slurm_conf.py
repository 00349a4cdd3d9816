"""What a development cluster is made of, and the configuration files that say so to Slurm."""

from __future__ import annotations

import os
import pwd
import random
from dataclasses import dataclass
from pathlib import Path

from processes import is_free

# Below the ports from which the kernel serves outgoing connections, so that none of them takes one of ours
# between the choice and the start of its daemon; and below those where the processes of runs meet.
PORTS = range(15000, 25000)


@dataclass(frozen=True)
class Settings:
    """The options of `cluster up`; times are in seconds."""

    nodes: int = 2
    accounting: bool = False
    grace: int = 15
    kill_wait: int = 10
    slurmd_timeout: int = 20
    conf: tuple[str, ...] = ()

    @property
    def node_names(self) -> list[str]:
        return [f"n{number}" for number in range(1, self.nodes + 1)]


@dataclass(frozen=True)
class Ports:
    """TCP ports of one cluster; the accounting daemon has one even where it does not run."""

    controller: int
    accounting: int
    nodes: tuple[int, ...]

    @classmethod
    def choose(cls, nodes: int) -> Ports:
        """Free ports, drawn at random so that clusters that start at the same time do not meet."""
        free = (port for port in random.sample(PORTS, len(PORTS)) if is_free(port))
        return cls(next(free), next(free), tuple(next(free) for _ in range(nodes)))

    def all(self) -> tuple[int, ...]:
        return (self.controller, self.accounting, *self.nodes)


def slurm_conf(directory: Path, name: str, settings: Settings, ports: Ports, hardware: str) -> str:
    """The text of slurm.conf.

    `hardware` is the output of `slurmd -C`: every emulated node has the whole host; Slurm refuses more.
    """
    wanted = ("CPUs=", "Boards=", "SocketsPerBoard=", "CoresPerSocket=", "ThreadsPerCore=", "RealMemory=")
    host = " ".join(field for field in hardware.split() if field.startswith(wanted))
    user = user_name()
    accounting = f"""\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
AccountingStoragePort={ports.accounting}
AccountingStoragePass={directory}/munge/socket
JobAcctGatherType=jobacct_gather/linux
"""
    nodes = "".join(
        f"NodeName={node} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} {host} State=UNKNOWN\n"
        for node, port in zip(settings.node_names, ports.nodes, strict=True)
    )
    members = ",".join(settings.node_names)
    low_priority = f"PriorityTier=1 PreemptMode=REQUEUE GraceTime={settings.grace}"
    return f"""\
ClusterName={name}
SlurmctldHost=localhost
SlurmctldPort={ports.controller}
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
TaskPlugin=task/none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait={settings.kill_wait}
SlurmdTimeout={settings.slurmd_timeout}
MinJobAge=86400
{accounting if settings.accounting else ""}{nodes}\
PartitionName=low Nodes={members} Default=YES MaxTime=INFINITE State=UP {low_priority}
PartitionName=short Nodes={members} MaxTime=5 State=UP {low_priority}
PartitionName=high Nodes={members} MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
""" + "".join(f"{line}\n" for line in settings.conf)


def slurmdbd_conf(directory: Path, ports: Ports, password: str) -> str:
    """The text of slurmdbd.conf; slurmdbd finds it beside slurm.conf and wants it private."""
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
    """The user that runs this, whatever LOGNAME says; all daemons and all jobs are his."""
    return pwd.getpwuid(os.getuid()).pw_name
