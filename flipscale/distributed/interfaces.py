"""The network interface over which gloo connects the processes of a run."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Sequence

import psutil

_ADDRESSES = (socket.AF_INET, socket.AF_INET6)
_log = logging.getLogger(__name__)


def default_gloo_interface() -> None:
    """Let gloo use the interface that NCCL is to use, unless GLOO_SOCKET_IFNAME names one.

    Without that variable gloo takes the address to which the host's name resolves. This may be a slow
    network, or an address that other nodes cannot reach.
    """
    wanted = os.environ.get("NCCL_SOCKET_IFNAME", "")
    if not wanted or "GLOO_SOCKET_IFNAME" in os.environ:
        return

    interface = nccl_interface(wanted, usable_interfaces())
    if interface is None:
        _log.warning(
            "NCCL_SOCKET_IFNAME is %s, but no interface of this machine that is up matches it; gloo uses the "
            "one to which the machine's name resolves, so correct the variable or set GLOO_SOCKET_IFNAME",
            wanted,
        )
        return
    os.environ["GLOO_SOCKET_IFNAME"] = interface


def nccl_interface(wanted: str, interfaces: Sequence[str]) -> str | None:
    """Return the interface by which NCCL's processes meet; None if no interface matches.

    The loopback interface comes last, although `^docker` matches it.

    Args:
        wanted: The value of NCCL_SOCKET_IFNAME: beginnings of names, separated by commas. `=` in front says
            that they are whole names; `^`, which comes first, that they are to be left out (NCCL user guide,
            "Environment Variables").
        interfaces: The interfaces of the machine, in its order.
    """
    excludes = wanted.startswith("^")
    wanted = wanted.removeprefix("^")
    whole = wanted.startswith("=")
    names = tuple(name for name in wanted.removeprefix("=").split(",") if name)

    def matches(interface: str) -> bool:
        named = interface in names if whole else interface.startswith(names)
        return named is not excludes

    matching = [interface for interface in interfaces if matches(interface)]
    return min(matching, key=lambda interface: interface == "lo", default=None)


def usable_interfaces() -> list[str]:
    """Return the interfaces of this machine that are up and have an address, in the kernel's order."""
    states = psutil.net_if_stats()
    return [
        name
        for name, addresses in psutil.net_if_addrs().items()
        if name in states and states[name].isup and any(one.family in _ADDRESSES for one in addresses)
    ]
