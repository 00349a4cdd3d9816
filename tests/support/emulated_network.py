"""Nodes of a network that this machine emulates, with a rate and a delay.

Each node is a network namespace, which a process of its own holds, with one interface to a switch
(emulated_switch.py) in a further one. Nothing of it appears in the machine's own network. The processes end
with the one that started them, however it ends, and the kernel then removes namespaces and interfaces.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.emulated_switch import DEVICE, MTU

INTERFACE = "net0"
_SWITCH = Path(__file__).with_name("emulated_switch.py")
_PROGRAMS = ("unshare", "nsenter", "ip")


class NoEmulationError(Exception):
    """This machine cannot emulate a network; the message says why."""


@dataclass(frozen=True)
class Link:
    """What each node is connected by."""

    rate: float
    """Bytes/s in each direction."""
    delay: float
    """Seconds from one node to another."""


class EmulatedNetwork:
    """Nodes that see each other through their links, and nothing else."""

    def __init__(self, link: Link, namespaces: Sequence[Path]) -> None:
        self.link = link
        self.namespaces = tuple(namespaces)

    def __len__(self) -> int:
        return len(self.namespaces)

    def address(self, node: int) -> str:
        """Return the IPv4 address of a node."""
        return f"10.77.0.{node + 1}"

    def start(self, node: int, command: Sequence[object], **options: Any) -> subprocess.Popen[str]:
        """Start a command in a node, with the options of Popen."""
        words = [str(word) for word in command]
        return subprocess.Popen(["nsenter", f"--net={self.namespaces[node]}", *words], text=True, **options)

    def run(self, node: int, command: Sequence[object]) -> str:
        """Run a command in a node and return what it prints.

        Raises:
            RuntimeError: If it fails, with what it printed as errors.
        """
        process = self.start(node, command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        printed, errors = process.communicate()
        if process.returncode:
            raise RuntimeError(f"{command} failed on node {node}: {errors}")
        return printed

    def run_ranks(self, command: Sequence[object], environment: Mapping[str, str]) -> str:
        """Run a program of torch.distributed, one process per node; return what the first prints.

        Raises:
            RuntimeError: If a process fails, with what it printed as errors. The others are killed.
        """
        with ExitStack() as stack:
            processes: list[subprocess.Popen[str]] = []
            for node in range(len(self)):
                process = self.start(
                    node,
                    command,
                    env={**os.environ, **environment, **self._rank(node)},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                )
                stack.callback(process.wait)
                stack.callback(process.kill)
                processes.append(process)

            printed = ""
            for node, process in enumerate(processes):
                output, errors = process.communicate()
                if process.returncode:
                    raise RuntimeError(f"{command} failed on node {node}: {errors}")
                printed = printed or output
            return printed

    def _rank(self, node: int) -> dict[str, str]:
        return {
            "RANK": str(node),
            "WORLD_SIZE": str(len(self)),
            "LOCAL_RANK": "0",
            "LOCAL_WORLD_SIZE": "1",
            "MASTER_ADDR": self.address(0),
            "MASTER_PORT": "29500",  # of a namespace of its own
            "GLOO_SOCKET_IFNAME": INTERFACE,
        }


@contextmanager
def emulated_network(nodes: int, link: Link) -> Generator[EmulatedNetwork]:
    """Emulate a network inside the context.

    Args:
        nodes: The number of nodes.
        link: What connects each of them.

    Raises:
        NoEmulationError: If this machine cannot.
    """
    _check_machine()
    with ExitStack() as stack:
        switch = _held(stack, ["unshare", "--net", sys.executable, _SWITCH, nodes, link.rate, link.delay])
        holders = [
            _held(stack, ["unshare", "--net", "sh", "-c", "echo ready; exec cat"]) for _ in range(nodes)
        ]
        network = EmulatedNetwork(link, [_namespace(holder.pid) for holder in holders])

        for node, holder in enumerate(holders):
            _move_interface(switch.pid, f"{DEVICE}{node}", holder.pid)
            network.run(node, ["sh", "-ec", _CONFIGURE.format(address=network.address(node))])
        yield network
        assert switch.poll() is None, "the switch of the emulated network ended"


# Connections keep their window while a step computes, as hosts for training are set up. The window
# follows Reno's rule, which every kernel allows in a namespace, and not the pauses and probes of BBR.
_CONFIGURE = f"""
echo 1 > /proc/sys/net/ipv6/conf/{INTERFACE}/disable_ipv6
echo 0 > /proc/sys/net/ipv4/tcp_slow_start_after_idle
echo reno > /proc/sys/net/ipv4/tcp_congestion_control
ip link set lo up
ip link set {INTERFACE} mtu {MTU} up
ip address add {{address}}/24 dev {INTERFACE}
"""


def _check_machine() -> None:
    missing = [program for program in _PROGRAMS if shutil.which(program) is None]
    if missing:
        raise NoEmulationError(f"emulating a network needs the programs {', '.join(missing)}")
    if os.geteuid() != 0:
        raise NoEmulationError("emulating a network needs root")
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        raise NoEmulationError("emulating a network needs /dev/net/tun")
    tried = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True)
    if tried.returncode:
        raise NoEmulationError(f"emulating a network needs network namespaces: {tried.stderr.strip()}")


def _held(stack: ExitStack, command: Sequence[object]) -> subprocess.Popen[str]:
    """Start a process that says when it is ready, and that ends with the context or with this process."""
    words = [str(word) for word in command]
    process = subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    stack.enter_context(process)  # closes its standard input, and waits for its end
    assert process.stdout is not None
    assert process.stderr is not None
    if process.stdout.readline() != "ready\n":
        (*_, reason) = ["", *process.stderr.read().splitlines()]
        raise NoEmulationError(f"this machine cannot emulate a network: {reason}")
    return process


def _move_interface(owner: int, device: str, target: int) -> None:
    """Move a device from the namespace of one process to that of another."""
    moved = ["ip", "link", "set", device, "netns", str(target), "name", INTERFACE]
    subprocess.run(["nsenter", f"--net={_namespace(owner)}", *moved], check=True, capture_output=True)


def _namespace(process: int) -> Path:
    return Path(f"/proc/{process}/ns/net")
