"""Forked children: what they hold of their parent, and how they end with it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.time_limits import wait_until

from flipscale.processes import mark_of

# Prints the open descriptors of a process and of a child that it forks, by their numbers.
FORKS = """
import json, os, socket, sys
from flipscale.child_process import keep_connections_from_children, kept_from_children

def opened():
    links = {}
    for name in os.listdir("/dev/fd"):
        if os.path.lexists(f"/dev/fd/{name}"):
            links[int(name)] = os.readlink(f"/dev/fd/{name}")
    return links

server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname())
pair = socket.socketpair()
pipe = os.pipe()
lock = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
kept = os.open(sys.argv[1], os.O_RDWR)
if sys.argv[2] == "joined":
    keep_connections_from_children()

before = opened()
with kept_from_children(lock):
    if os.fork() == 0:
        print(json.dumps({"parent": before, "child": opened(), "tcp": [server.fileno(), client.fileno()],
                          "lock": lock}), flush=True)
        os._exit(0)
os.wait()
"""

# Starts a child that dies with it, and sleeps.
PARENT = """
import os, signal, time
from flipscale.child_process import die_with_parent
parent = os.getpid()
child = os.fork()
if child == 0:
    die_with_parent(parent)
    os.kill(os.getpid(), signal.SIGSTOP)
os.waitpid(child, os.WUNTRACED)
print(child, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("joined", [False, True])
def test_child_holds_neither_lock_nor_connections(tmp_path: Path, joined: bool) -> None:
    word = "joined" if joined else "by itself"
    done = subprocess.run(
        [sys.executable, "-c", FORKS, str(tmp_path / "lock"), word],
        capture_output=True,
        text=True,
        check=True,
    )
    said = json.loads(done.stdout)

    expected = dict(said["parent"])
    del expected[str(said["lock"])]
    if joined:
        expected |= {str(number): "/dev/null" for number in said["tcp"]}
    assert said["child"] == expected


def test_stopped_child_dies_with_its_killed_parent() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        mark = mark_of(int(parent.stdout.readline()))
        assert mark is not None
        assert mark.lives
        parent.kill()
    wait_until(lambda: not mark.lives)


def test_child_of_a_parent_that_has_ended_does_not_begin() -> None:
    script = (
        "import os; from flipscale.child_process import die_with_parent; "
        "die_with_parent(os.getppid() + 1); print('lives')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
