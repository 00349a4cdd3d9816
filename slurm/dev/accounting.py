"""Accounting of a development cluster: slurmdbd and a private MariaDB that listens only on a socket file."""

from __future__ import annotations

import os
import secrets

from daemons import ClusterError, Daemons
from slurm_conf import Ports, slurmdbd_conf, user_name

# Nothing here survives a crash of the host, and a busy disk must not delay the creation of the tables.
FAST_NOT_DURABLE = ("--innodb-flush-method=nosync", "--innodb-flush-log-at-trx-commit=0", "--sync-frm=0")
DAEMONS = ("slurmdbd", "mariadbd")
"""The daemons of accounting, in the order in which they are ended."""


def start(daemons: Daemons, ports: Ports, until: float) -> None:
    """Start MariaDB and slurmdbd in an empty directory; the controller must not be started earlier.

    Args:
        daemons: The daemons of the cluster.
        ports: The ports of the cluster.
        until: Value of time.monotonic() at which to give up.

    Raises:
        ClusterError: If one of them does not answer in time.
    """
    data = daemons.directory / "database"
    socket = daemons.environment["MYSQL_UNIX_PORT"]
    private = ("--no-defaults", f"--datadir={data}", f"--user={user_name()}")
    install = ("mariadb-install-db", *private, "--auth-root-authentication-method=normal", "--skip-test-db")
    installed = daemons.client(*install, seconds=30)
    if installed.returncode:
        raise ClusterError(f"mariadb-install-db failed: {installed.stderr.strip() or installed.stdout}")

    daemons.start(
        "mariadbd",
        "mariadbd",
        *private,
        f"--socket={socket}",
        "--skip-networking",
        f"--pid-file={daemons.directory}/run/mariadbd.pid",
        f"--log-error={daemons.directory}/log/mariadbd.log",
        "--innodb-buffer-pool-size=64M",
        "--innodb-lock-wait-timeout=900",
        *FAST_NOT_DURABLE,
    )
    client = ("mariadb", "--no-defaults", "--user=root", f"--socket={socket}")
    daemons.await_ready("mariadbd", lambda: daemons.client(*client, stdin="select 1;").returncode == 0, until)

    password = secrets.token_hex(16)
    granted = daemons.client(
        *client,
        stdin="create database slurm_acct_db;"
        f"create user 'slurm'@'localhost' identified by '{password}';"
        "grant all on slurm_acct_db.* to 'slurm'@'localhost';",
    )
    if granted.returncode:
        raise ClusterError(f"the accounting database could not be created: {granted.stderr.strip()}")

    # slurmdbd refuses a configuration that others can read.
    configuration = daemons.directory / "slurmdbd.conf"
    configuration.unlink(missing_ok=True)
    with open(os.open(configuration, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(slurmdbd_conf(daemons.directory, ports, password))

    daemons.start("slurmdbd", "slurmdbd", "-D")
    answers = ("sacctmgr", "--noheader", "show", "cluster")
    daemons.await_ready("slurmdbd", lambda: daemons.client(*answers, seconds=2).returncode == 0, until)
