"""One TCP connection that shows what a link gives.

    python one_stream.py receive 1000000
    python one_stream.py send 1000000 ADDRESS

The receiver prints a line when it listens, and then the bytes/s of the stream. The sender prints the shortest
of some round trips in seconds.
"""

from __future__ import annotations

import socket
import sys
import time

PORT = 5000
ROUND_TRIPS = 10


def receive(size: int) -> float:
    """Answer the round trips, take a stream, and return its bytes/s after its first quarter."""
    with socket.create_server(("", PORT)) as server:
        print("ready", flush=True)
        connection, _ = server.accept()
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for _ in range(ROUND_TRIPS):
                connection.sendall(connection.recv(1))

            began, before, received = 0.0, 0, 0
            while received < size:
                received += len(connection.recv(2**16))
                if not before and received > size // 4:
                    began, before = time.monotonic(), received
            return (received - before) / (time.monotonic() - began)


def send(size: int, address: str) -> float:
    """Make the round trips, send a stream, and return the shortest round trip."""
    with socket.create_connection((address, PORT)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        taken: list[float] = []
        for _ in range(ROUND_TRIPS):
            began = time.monotonic()
            connection.sendall(b"x")
            connection.recv(1)
            taken.append(time.monotonic() - began)
        connection.sendall(bytes(size))
        return min(taken)


if __name__ == "__main__":
    print(receive(int(sys.argv[2])) if sys.argv[1] == "receive" else send(int(sys.argv[2]), sys.argv[3]))
