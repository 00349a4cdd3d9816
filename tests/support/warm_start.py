"""Start Python programs from an interpreter that has already imported torch and the package.

Tests of commands mostly wait for imports: 2.5 to 3.5 s per process, hundreds of times. `WarmPopen` is a
`subprocess.Popen` whose process is forked from a server. The server has done the imports, and has one thread,
no process group and no CUDA context. A forked process is as real as an executed one: it is a child of the
caller and has its own pid, session, signals, environment, directory, standard streams and exit code.

Four things differ. `/proc/PID/cmdline` is the server's; string hashes are seeded once per server; at its
end the interpreter does not delete its modules, after it has called what was registered for the exit; what
a module read from the environment at import is the server's. A program is executed as usual if its
environment differs in such a variable (`_READ_AT_IMPORT`), or if it asks for something that is not
supported here.

`torch.distributed.run` gets a server of its own, so that its workers are warm, too. So does each process of
pytest-xdist, which is forked itself: a run of pytest imports everything once.
"""

from __future__ import annotations

import array
import ctypes
import inspect
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from support.time_limits import PatientPopen

_READ_AT_IMPORT = (
    *("PYTHON", "LD_", "OMP_", "KMP_", "MKL_", "OPENBLAS_", "NUMEXPR_", "CUDA_", "TORCH_", "TORCHINDUCTOR_"),
    *("HF_", "HUGGINGFACE_", "TRANSFORMERS_", "TOKENIZERS_", "XDG_", "COVERAGE_", "DS_", "MALLOC_", "ATEN_"),
)
_READ_LATER = (
    "TORCH_NCCL_ASYNC_ERROR_HANDLING",  # torch.distributed.run sets it for its workers
    "PYTHONWARNINGS",  # taken over by the forked process
    "TOKENIZERS_PARALLELISM",  # read whenever a batch of texts is encoded
)
_COMMAND = os.path.join(os.path.dirname(sys.executable), "flipscale")
_SERVER = Path(__file__).with_name("warm_server.py")
_PR_SET_CHILD_SUBREAPER = 36
_HEADER = struct.Struct("!I")
_SECONDS_TO_WARM = 600.0
EXECUTING_POPEN = subprocess.Popen
_libc = ctypes.CDLL(None, use_errno=True)


class WarmServer:
    """The caller's end of a server process; children are forked on request, one at a time."""

    def __init__(self, connection: socket.socket, environment: Mapping[str, str]) -> None:
        self._connection = connection
        self._environment = dict(environment)
        self._lock = threading.Lock()
        self._owner = os.getpid()

    @classmethod
    def start(cls) -> WarmServer:
        """Execute a clean interpreter as server, and wait until it has imported everything."""
        ours, theirs = socket.socketpair()
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        EXECUTING_POPEN(
            [sys.executable, str(_SERVER), str(theirs.fileno())],
            env=environment,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
        )
        theirs.close()

        ours.settimeout(_SECONDS_TO_WARM)
        if receive(ours)[0] != {"ready": True}:
            raise RuntimeError("the warm server did not start")
        ours.settimeout(None)
        return cls(ours, environment)

    def serves(self, environment: Mapping[str, str]) -> bool:
        """Whether imports in this environment would have had the result that they had in the server's."""
        return os.getpid() == self._owner and not self._differences(environment)

    def restore_environment(self) -> None:
        """Give the variables of this process that modules read at import the server's values."""
        for name in self._differences(os.environ):
            if name in self._environment:
                os.environ[name] = self._environment[name]
            else:
                del os.environ[name]

    def _differences(self, environment: Mapping[str, str]) -> list[str]:
        names = environment.keys() | self._environment.keys()
        read = (name for name in names if name.startswith(_READ_AT_IMPORT) and name not in _READ_LATER)
        return [name for name in read if environment.get(name) != self._environment.get(name)]

    def fork(self, request: dict[str, Any], streams: list[int]) -> int:
        """Return the pid of a new child of this process, which runs the request with these streams."""
        with self._lock:
            # The parent of the child ends at once; the kernel then gives the child to this process.
            _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
            try:
                send(self._connection, request, streams)
                answer, _ = receive(self._connection)
            finally:
                _libc.prctl(_PR_SET_CHILD_SUBREAPER, 0)

        return int(answer["pid"])


class WarmPopen(PatientPopen):
    """A `subprocess.Popen` that forks Python programs from the server of this process."""

    server: ClassVar[WarmServer | None] = None
    only_commands = True  # in a launcher, whatever it starts
    with_server = False  # whether the process gets a server of its own, which was forked with it
    forked = 0  # how many programs this process has forked

    def _execute_child(self, *arguments: Any) -> None:
        # pyrefly: ignore[missing-attribute]: private to subprocess
        execute_child = EXECUTING_POPEN._execute_child
        names = list(inspect.signature(execute_child).parameters)[1:]
        options = dict(zip(names, arguments, strict=True))
        environment = dict(os.environ if options["env"] is None else options["env"])
        program = _program(options["args"])
        if program is None or (self.only_commands and not _is_command(program)) or not _supported(options):
            super()._execute_child(*arguments)
            return

        if WarmPopen.server is None or WarmPopen.server._owner != os.getpid():
            WarmPopen.server = WarmServer.start()
        if not WarmPopen.server.serves(environment):
            super()._execute_child(*arguments)
            return

        umask = os.umask(0)
        os.umask(umask)
        request = {
            "program": program,
            "with_server": self.with_server,
            "environment": environment,
            "directory": os.fspath(options["cwd"] or os.getcwd()),
            "new_session": options["start_new_session"],
            "blocked": [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
            "ignored": [
                n
                for n in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
                if signal.getsignal(n) is signal.SIG_IGN
            ],
            "umask": umask,
        }
        ends = [options["p2cread"], options["c2pwrite"], options["errwrite"]]
        streams = [standard if end == -1 else end for standard, end in enumerate(ends)]
        self.pid = WarmPopen.server.fork(request, streams)
        WarmPopen.forked += 1
        self._child_created = True
        pipes = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        # pyrefly: ignore[missing-attribute]: private to subprocess
        self._close_pipe_fds(*(options[name] for name in pipes))


class WarmWorkerPopen(WarmPopen):
    """A `subprocess.Popen` that forks the processes of pytest-xdist."""

    only_commands = False
    with_server = True


def _program(arguments: Any) -> list[str] | None:
    """Return what the interpreter is asked to run ("-m" MODULE, "-c" CODE or SCRIPT, arguments), or None."""
    if isinstance(arguments, (str, bytes, os.PathLike)):
        return None
    words = [os.fsdecode(word) for word in arguments]
    if len(words) > 1 and words[0] == sys.executable and words[1] == "-u":
        words = [words[0], *words[2:]]
    if words and words[0] == _COMMAND:
        return words
    if len(words) < 2 or words[0] != sys.executable:
        return None
    if words[1] in ("-m", "-c"):
        return words[1:] if len(words) > 2 else None
    return None if words[1].startswith("-") else words[1:]


def _is_command(program: list[str]) -> bool:
    """Whether the program is this package's command, by itself or under torchrun, or a module of it."""
    if program[0] != "-m":
        return program[0] == _COMMAND
    return program[1] == "torch.distributed.run" or program[1].split(".")[0] == "flipscale"


def _supported(options: Mapping[str, Any]) -> bool:
    odd = ("preexec_fn", "pass_fds", "executable", "shell", "gid", "gids", "uid")
    if any(options.get(name) for name in odd) or not options["close_fds"]:
        return False
    return options.get("umask", -1) in (-1, None) and options.get("process_group", -1) in (-1, None)


def send(connection: socket.socket, message: Mapping[str, Any], descriptors: list[int]) -> None:
    """Send a message, with copies of these file descriptors."""
    data = json.dumps(message).encode()
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    connection.sendmsg([_HEADER.pack(len(data))], ancillary)
    connection.sendall(data)


def receive(connection: socket.socket) -> tuple[Any, list[int]]:
    """Return the next message and its descriptors; (None, []) at the end of the connection."""
    header, descriptors, _, _ = socket.recv_fds(connection, _HEADER.size, 3)
    if not header:
        return None, []
    left = _HEADER.unpack(header)[0]
    data = b""
    while len(data) < left:
        data += connection.recv(left - len(data))
    return json.loads(data), descriptors
