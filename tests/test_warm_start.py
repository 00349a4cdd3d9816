"""A program that is forked from the warm server behaves as one that is executed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.shards import tiny_tokenizer
from support.warm_start import EXECUTING_POPEN, WarmPopen

FLIPSCALE = [sys.executable, "-m", "flipscale"]
_ABOUT = """
import json, os, signal, sys
print(json.dumps({
    "parent": os.getppid(), "session": os.getsid(0) == os.getpid(), "name": __name__,
    "directory": os.getcwd(), "arguments": sys.argv, "path": sys.path[0],
    "variable": os.environ.get("OF_THIS_TEST"), "input": sys.stdin.read(),
    "interrupt": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
    "blocked": sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, []))),
}))
print("to the other stream", file=sys.stderr)
sys.exit(7)
"""


@pytest.fixture
def any_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork any Python program, not only this package's commands."""
    monkeypatch.setattr(WarmPopen, "only_commands", False)


def run(kind: type[subprocess.Popen[str]], *arguments: str, **options: Any) -> tuple[int, str, str]:
    process = kind(
        [sys.executable, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
    out, errors = process.communicate("typed", timeout=60)
    return process.returncode, out, errors


def is_warm(process: subprocess.Popen[str]) -> bool:
    return b"warm_server.py" in Path(f"/proc/{process.pid}/cmdline").read_bytes()


@pytest.mark.parametrize("new_session", [False, True])
@pytest.mark.parametrize("form", ["code", "script", "module"])
def test_streams_arguments_and_surroundings_are_those_of_an_executed_process(
    any_program, tmp_path, form, new_session
):
    script = tmp_path / "about.py"
    script.write_text(_ABOUT)
    program = {"code": ["-c", _ABOUT], "script": [str(script)], "module": ["-m", "about"]}[form]
    options = {
        "cwd": tmp_path,
        "env": {**os.environ, "OMP_NUM_THREADS": "1", "OF_THIS_TEST": "yes"},
        "start_new_session": new_session,
    }
    executed = run(EXECUTING_POPEN, *program, "a", "b c", **options)
    assert executed[0] == 7
    assert run(WarmPopen, *program, "a", "b c", **options) == executed


_FAREWELL = """
import atexit, sys, threading, time
atexit.register(lambda: print("registered"))
threading.Thread(target=lambda: (time.sleep(0.1), print("thread"))).start()
sys.stdout.write("not flushed ")
"""


@pytest.mark.parametrize(
    "code",
    [
        *(
            "pass",
            "raise SystemExit('no')",
            "raise SystemExit",
            "raise SystemExit(300)",
            "raise SystemExit(-1)",
        ),
        *("1 / 0", "raise KeyboardInterrupt", "import os; os.abort()"),
        *(_FAREWELL, _FAREWELL + "sys.exit(3)", _FAREWELL + "1 / 0"),
        "import os; os.close(1); print('lost')",
    ],
)
def test_ends_are_those_of_an_executed_process(any_program, code):
    executed, out, errors = run(EXECUTING_POPEN, "-c", code)
    warm, warm_out, warm_errors = run(WarmPopen, "-c", code)
    assert (warm, warm_out) == (executed, out)
    assert warm_errors.splitlines()[-1:] == errors.splitlines()[-1:]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_signals_reach_the_process_itself(any_program, number):
    code = "import time; print('here', flush=True); time.sleep(60)"
    process = WarmPopen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    process.stdout.readline()
    assert is_warm(process)
    assert Path(f"/proc/{process.pid}/stat").read_text().rsplit(")")[1].split()[1] == str(os.getpid())
    process.send_signal(number)
    assert process.wait(timeout=60) == -number


def test_commands_are_warm_and_other_programs_are_executed():
    command = WarmPopen([*FLIPSCALE, "schema"], stdout=subprocess.PIPE, text=True)
    assert is_warm(command)
    assert command.communicate(timeout=60)[0].startswith("{")
    assert command.returncode == 0

    other = WarmPopen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, text=True)
    assert not is_warm(other)
    other.communicate("\n", timeout=60)


def test_a_variable_that_imports_read_makes_it_execute(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0" if os.environ.get("HF_HUB_OFFLINE") == "1" else "1")
    process = WarmPopen([*FLIPSCALE, "schema"], stdout=subprocess.PIPE, text=True)
    assert not is_warm(process)
    assert process.communicate(timeout=60)[0].startswith("{")


def test_workers_of_torchrun_are_its_own_warm_children(any_program, tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(
        "import os, sys, torch.distributed as dist\n"
        "warm = b'warm_server.py' in open('/proc/self/cmdline', 'rb').read()\n"
        "dist.init_process_group('gloo')\n"
        "dist.barrier()\n"  # a process that leaves at once closes connections that others still make
        "with open(f'rank{os.environ[\"RANK\"]}', 'w') as file:\n"  # libraries print, too
        "    file.write(f'{os.getppid()} {warm}')\n"
        "dist.destroy_process_group()\n"
    )
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        str(script),
    ]
    process = WarmPopen(launcher, cwd=tmp_path)
    assert process.wait(timeout=120) == 0
    for rank in range(2):
        assert (tmp_path / f"rank{rank}").read_text() == f"{process.pid} True"


@pytest.mark.executes
def test_a_marked_test_executes_everything():
    process = subprocess.Popen([*FLIPSCALE, "schema"], stdout=subprocess.PIPE, text=True)
    assert not is_warm(process)
    assert process.communicate(timeout=60)[0].startswith("{")


def test_what_a_tokenizer_sets_leaves_commands_warm(monkeypatch):
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    first = WarmPopen([*FLIPSCALE, "schema"], stdout=subprocess.PIPE, text=True)
    first.communicate(timeout=60)
    tiny_tokenizer()
    assert os.environ["TOKENIZERS_PARALLELISM"] == "false"

    process = WarmPopen([*FLIPSCALE, "schema"], stdout=subprocess.PIPE, text=True)
    assert is_warm(process)
    assert process.communicate(timeout=60)[0].startswith("{")


@pytest.fixture(scope="module")
def compiler_of_several_tests() -> None:
    """Start the server of this process, and set what torch's compiler sets."""
    WarmPopen([*FLIPSCALE, "schema"], stdout=subprocess.DEVNULL).wait(timeout=60)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = "somewhere"


def test_what_a_fixture_of_several_tests_sets_leaves_commands_warm(compiler_of_several_tests: None) -> None:
    process = WarmPopen([*FLIPSCALE, "schema"], stdout=subprocess.PIPE, text=True)
    assert is_warm(process)
    process.communicate(timeout=60)
