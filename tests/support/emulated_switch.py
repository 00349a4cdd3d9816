"""The switch of an emulated network: passes Ethernet frames between nodes at a rate and after a delay.

    python emulated_switch.py 4 12500000 0.01

The script makes one tap device per node, `flipnet0` and so on, prints a line, and passes frames until its
standard input ends. Each node has a cable to the switch that carries `rate` bytes/s in each direction at the
same time. A frame is on both cables at once, as through a switch that does not wait for its end, and arrives
`delay` seconds later. Frames for different nodes take turns on the cable, as with the queueing discipline
fq_codel, so that short messages do not wait for long ones of another connection. Nothing is lost, and queues
have no limit. Times follow from the sizes of the frames, not from when this process runs: a late switch loses
no rate while frames wait.
"""

from __future__ import annotations

import fcntl
import heapq
import os
import select
import struct
import sys
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field

DEVICE = "flipnet"
MTU = 9000
_HEADER = 14
_TUNSETIFF = 0x400454CA
_TAP_WITHOUT_HEADER = 0x0002 | 0x1000
_EXACT = 50e-6
"""Seconds before its time at which a frame may be delivered: select() could hardly wake up in time again."""


class Port:
    """One node's cable, and the frames that wait for it."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.up = 0.0
        """When the cable to the switch is free."""
        self.down = 0.0
        """When the cable from the switch is free."""
        self.queues: dict[Port, deque[tuple[float, bytes]]] = {}
        """The frames for each other port, with the times of their arrival; the next port comes first."""

    def next_frame(self) -> tuple[Port, float, bytes]:
        """Take the next frame from the queues, which are not empty."""
        target = next(iter(self.queues))
        queue = self.queues.pop(target)
        arrived, frame = queue.popleft()
        if queue:
            self.queues[target] = queue  # behind the others
        return target, arrived, frame


@dataclass(order=True)
class Delivery:
    """A frame on its way."""

    due: float
    number: int
    port: Port = field(compare=False)
    frame: bytes = field(compare=False)


class Switch:
    """The ports, and the frames on their way."""

    def __init__(self, ports: list[Port], rate: float, delay: float) -> None:
        self.ports = ports
        self.rate = rate
        self.delay = delay
        self.addresses: dict[bytes, Port] = {}
        self.on_their_way: list[Delivery] = []
        self.count = 0

    def run(self, end: int) -> None:
        """Pass frames until `end`, a file descriptor, can be read."""
        ports = {port.fd: port for port in self.ports}
        while True:
            ready, _, _ = select.select([*ports, end], [], [], self._next_event())
            if end in ready:
                return
            for fd in ready:
                with suppress(BlockingIOError):
                    while True:
                        self._accept(ports[fd], os.read(fd, MTU + _HEADER))
            for port in self.ports:
                self._send(port)
            self._deliver()

    def _accept(self, port: Port, frame: bytes) -> None:
        """Queue a frame of a node for the node of its address, or for all others."""
        self.addresses[frame[6:12]] = port
        known = self.addresses.get(frame[:6])
        for target in self.ports if known is None else [known]:
            if target is not port:
                port.queues.setdefault(target, deque()).append((time.monotonic(), frame))

    def _send(self, port: Port) -> None:
        """Put frames on a port's cable until it is busy or none waits."""
        now = time.monotonic()
        while port.queues and port.up <= now:
            target, arrived, frame = port.next_frame()
            seconds = len(frame) / self.rate
            port.up = max(port.up, arrived) + seconds
            target.down = max(port.up, target.down + seconds)
            self.count += 1
            heapq.heappush(self.on_their_way, Delivery(target.down + self.delay, self.count, target, frame))

    def _deliver(self) -> None:
        """Hand over the frames that are due."""
        while self.on_their_way and self.on_their_way[0].due - time.monotonic() < _EXACT:
            delivery = heapq.heappop(self.on_their_way)
            with suppress(OSError):  # a node that is not up yet
                os.write(delivery.port.fd, delivery.frame)

    def _next_event(self) -> float | None:
        """Return the seconds until a cable is free for the next frame or one is due; None without any."""
        times = [port.up for port in self.ports if port.queues]
        times += [delivery.due for delivery in self.on_their_way[:1]]
        return max(0.0, min(times) - time.monotonic()) if times else None


def open_tap(name: str) -> int:
    """Make a tap device and return the file descriptor of its frames; the device goes with it."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _TAP_WITHOUT_HEADER))
    return fd


def main() -> None:
    nodes, rate, delay = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
    # The switch needs little of a core, but at once, also while other processes compute.
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    ports = [Port(open_tap(f"{DEVICE}{node}")) for node in range(nodes)]
    print("ready", flush=True)
    Switch(ports, rate, delay).run(sys.stdin.fileno())


if __name__ == "__main__":
    main()
