"""The command line of the development cluster: `slurm/dev/cluster COMMAND` (see README.md)."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from cluster import DevelopmentCluster
from daemons import ClusterError
from slurm_conf import Settings, user_name

PACKAGES = ("slurm-wlm", "slurmdbd", "munge", "mariadb-server")


def main() -> None:
    """Run one command.

    The exit code is 0 if it is done, 2 for wrong usage, 1 for anything else. `status` exits with 1 while the
    cluster does not run.
    """
    options = _parser().parse_args()
    try:
        if options.command == "install":
            install()
        else:
            sys.exit(_run(DevelopmentCluster(options.directory), options))
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def _run(cluster: DevelopmentCluster, options: argparse.Namespace) -> int:
    match options.command:
        case "up":
            up(cluster, options)
        case "down":
            print("down" if cluster.down() else "it was not up")
        case "status":
            return status(cluster, options.json)
        case "env":
            cluster.check_exists()  # its controller may be down: the variables help to look for the cause
            for key, value in _environment(cluster).items():
                print(f"export {key}={shlex.quote(value)}")
        case "node-kill":
            cluster.node_kill(options.node, options.steps)
        case "node-start":
            cluster.node_start(options.node)
        case "preempt":
            print(cluster.preempt(options.nodes, options.seconds))
        case "release":
            cluster.release(options.job)
    return 0


def install() -> None:
    """Install Slurm, munge and MariaDB with apt, which needs root; starts none of them.

    Raises:
        ClusterError: If this is not root, or apt fails.
    """
    if os.getuid() != 0:
        raise ClusterError(f"Only root can install packages; ask for {', '.join(PACKAGES)} (Debian, Ubuntu).")

    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (
        ["apt-get", "update", "--quiet"],
        ["apt-get", "install", "--quiet", "--yes", "--no-install-recommends", *PACKAGES],
    ):
        try:
            code = subprocess.run(command, env=environment, check=False).returncode
        except FileNotFoundError as error:
            raise ClusterError("apt-get not found; install Slurm, munge and MariaDB yourself.") from error
        if code:
            raise ClusterError(f"`{shlex.join(command)}` failed with exit code {code}; its output says why.")


def up(cluster: DevelopmentCluster, options: argparse.Namespace) -> None:
    """Start the cluster and print what to type next."""
    settings = Settings(
        nodes=options.nodes,
        accounting=options.accounting,
        grace=options.grace,
        kill_wait=options.kill_wait,
        slurmd_timeout=options.slurmd_timeout,
        bind_cores=options.bind_cores,
        conf=tuple(options.conf),
    )

    began = time.monotonic()
    started = cluster.up(settings)
    took = f"up in {time.monotonic() - began:.1f} s" if started else "already up"

    script = shlex.quote(str(Path(__file__).with_name("cluster")))
    option = ""
    if cluster.directory != default_directory():
        option = f" --directory {shlex.quote(str(cluster.directory))}"
    print(
        f"{took}: {settings.nodes} nodes, partitions low (preemptible), short (5 min), high (preempting), "
        f"in {cluster.directory}\n"
        f'next:  eval "$({script} env{option})"   # then sinfo, srun, sbatch and flipscale submit use it\n'
        f"       {script} preempt{option}         # a job on high that takes the nodes\n"
        f"       {script} down{option}"
    )


def status(cluster: DevelopmentCluster, as_json: bool) -> int:
    """Print daemons, nodes and jobs; return 1 while the cluster does not run, else 0."""
    state = cluster.status()
    if as_json:
        print(json.dumps(state, indent=1))
    else:
        print(f"{state['directory']}: {'up' if state['running'] else 'not running'}")
        for name, pid in state.get("daemons", {}).items():
            node = state.get("nodes", {}).get(name, "")
            print(f"  {name:<10} {f'pid {pid}' if pid else 'dead':<12} {node}".rstrip())
        for job in state.get("jobs", []):
            print("  job {job}  {partition}  {state}  {reason}  {name}".format(**job))
    return 0 if state["running"] else 1


def default_directory() -> Path:
    """Return the directory that the environment of `cluster env` names, else one in the user's cache."""
    chosen = os.environ.get("FLIPSCALE_SLURM_DIRECTORY")
    return Path(chosen) if chosen else Path.home() / f".cache/flipscale-slurm-{user_name()}"


def _environment(cluster: DevelopmentCluster) -> dict[str, str]:
    return {"SLURM_CONF": str(cluster.configuration), "FLIPSCALE_SLURM_DIRECTORY": str(cluster.directory)}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="slurm/dev/cluster", description="A real Slurm on this host.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("install", help="install Slurm, munge and MariaDB (root, apt)")

    def command(name: str, summary: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=summary, description=summary)
        added.add_argument(
            "--directory", type=Path, default=default_directory(), help="all of the cluster (%(default)s)"
        )
        return added

    _add_up(command("up", "start it, or recover what a reboot left; waits until a step ran on all nodes"))
    command("down", "cancel all jobs, end all daemons, check that the ports are free")
    shown = command("status", "daemons, nodes, jobs")
    shown.add_argument("--json", action="store_true")
    command("env", 'print exports for eval "$(slurm/dev/cluster env)"')
    kill = command("node-kill", "SIGKILL the slurmd of a node")
    kill.add_argument("node")
    kill.add_argument("--steps", action="store_true", help="and all that runs on the node")
    command("node-start", "restart the slurmd of a node, after ending what it left").add_argument("node")
    preempt = command("preempt", "submit a short job on high that takes whole nodes; print its id")
    preempt.add_argument("--nodes", type=int, help="(all)")
    preempt.add_argument("--seconds", type=_seconds, default=5, help="(%(default)s)")
    command("release", "let a requeued job start now that waits for its begin time").add_argument("job")
    return parser


def _add_up(parser: argparse.ArgumentParser) -> None:
    default = Settings()
    parser.add_argument("--nodes", type=int, choices=range(2, 5), default=default.nodes, help="(%(default)s)")
    parser.add_argument("--accounting", action="store_true", help="slurmdbd and MariaDB, so that sacct works")
    parser.add_argument(
        "--bind-cores", action="store_true", help="srun binds processes to cores, as on most clusters"
    )
    for name, meaning in (
        ("grace", "from the TERM of a preemption to its KILL"),
        ("kill_wait", "from any other TERM to its KILL"),
        ("slurmd_timeout", "of silence until a node is down (seen in steps of 30 s)"),
    ):
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=_seconds,
            default=getattr(default, name),
            metavar="SECONDS",
            help=f"{meaning} (%(default)s)",
        )
    parser.add_argument(
        "--conf", action="append", default=[], metavar="LINE", help="a line for slurm.conf, e.g. JobRequeue=0"
    )


def _seconds(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of seconds")
    return int(text)


if __name__ == "__main__":
    main()
