"""Authentication of a development cluster: a munged with a key and a socket of its own."""

from __future__ import annotations

import os

from daemons import Daemons


def start(daemons: Daemons, until: float) -> None:
    """Write a new key and start munged.

    Args:
        daemons: The daemons of the cluster.
        until: Value of time.monotonic() at which to give up.

    Raises:
        ClusterError: If munged does not answer in time.
    """
    munge = daemons.directory / "munge"
    key = munge / "key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))

    daemons.start(
        "munged",
        "munged",
        "--foreground",
        "--force",  # the directories above may be private: only this user's processes come here
        f"--key-file={key}",
        f"--socket={munge}/socket",
        f"--pid-file={munge}/pid",
        f"--log-file={daemons.directory}/log/munged.log",
        f"--seed-file={munge}/seed",
    )

    question = ("munge", "--no-input", f"--socket={munge}/socket")
    daemons.await_ready("munged", lambda: daemons.client(*question, seconds=2).returncode == 0, until)
