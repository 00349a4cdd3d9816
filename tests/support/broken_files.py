"""Every file of a run in every broken shape, and the commands that meet them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

SECONDS_PER_COMMAND = 600.0

FILES = (
    *("job.yaml", "index.json", "ledger.jsonl", "segment.json", "metrics.jsonl", "evaluations.jsonl"),
    *("quarantine.jsonl", "submissions.jsonl", "lock", "submit.lock", "token", "STOP", "starts.jsonl"),
    "rehearsal.json",
    *("checkpoints/LATEST", "checkpoints/NEWEST/manifest.json"),
    *("tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"),
    *("heartbeats/ATTEMPT/rank_00000.json", "index/index.json"),
    *("checkpoints", "heartbeats", "tokenizer", "index", "logs"),
)
"""Every file and directory that a run has, relative to its directory; NEWEST and ATTEMPT stand for names."""


def _written(content: bytes) -> Callable[[Path, bytes], None]:
    return lambda path, before: _replace(path, content)


def _replace(path: Path, content: bytes) -> None:
    _remove(path)
    path.write_bytes(content)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _directory(path: Path, before: bytes) -> None:
    _remove(path)
    path.mkdir()
    (path / "of_somebody").touch()


def _fifo(path: Path, before: bytes) -> None:
    _remove(path)
    os.mkfifo(path)


def _dangling(path: Path, before: bytes) -> None:
    _remove(path)
    path.symlink_to("nowhere")


SHAPES: Mapping[str, Callable[[Path, bytes], None]] = {
    "missing": lambda path, before: _remove(path),
    "empty": _written(b""),
    "half": lambda path, before: _replace(path, before[: len(before) // 2]),
    "cut in the last line": lambda path, before: _replace(path, before[:-5]),
    "NULs": lambda path, before: _replace(path, bytes(max(len(before), 1))),
    "not UTF-8": _written(b"\xff\xfe{}\n\xff\n"),
    "half not UTF-8": lambda path, before: _replace(path, before[: len(before) // 2] + b"\xff\xff\n"),
    "[]": _written(b"[]\n"),
    "{}": _written(b"{}\n"),
    "null": _written(b"null\n"),
    "nested": _written(b"[" * 100_000 + b"\n"),
    "nested object": _written(b'{"samples":' * 100_000 + b"\n"),
    "a number of a million digits": _written(b'{"samples": ' + b"9" * 1_000_000 + b"}\n"),
    "other types": lambda path, before: _replace(path, _other_types(before)),
    "infinite": _written(b'{"samples": 1e999, "samples_seen": 1e999, "segment": 1e999, "time": NaN}\n'),
    "a directory": _directory,
    "a fifo": _fifo,
    "a dangling link": _dangling,
}
"""Each shape takes the place of a file, and knows the content that it had."""


def _other_types(before: bytes) -> bytes:
    """Put a list in the place of every number, and a number in that of every other string."""
    import json

    def changed(value: object) -> object:
        if isinstance(value, dict):
            return {name: changed(item) for name, item in value.items()}
        if isinstance(value, list):
            return {"items": [changed(item) for item in value]}
        return [value] if isinstance(value, (int, float)) else 7

    try:
        lines = [json.dumps(changed(json.loads(line))) for line in before.splitlines()]
    except ValueError:
        return b"7: [8\n"
    return ("\n".join(lines) + "\n").encode()


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    code: int
    output: str
    errors: str
    hung: bool

    @property
    def fault(self) -> str:
        """Return what is wrong with the outcome; empty if nothing is."""
        if self.hung:
            return "it hangs"
        if "Traceback" in self.errors or "Error:" in self.errors.replace("error:", ""):
            return "a traceback: " + self.errors[-1500:]
        if self.code not in (0, 1, 2, 75):
            return f"exit code {self.code}: {self.errors[-500:]}"
        if self.code and not self.errors.strip():
            return f"exit code {self.code} without a word"
        return ""


def break_file(run: Path, name: str, shape: str) -> Path:
    """Put a shape in the place of a file of a run."""
    newest = max((path.parent.name for path in run.glob("checkpoints/*/manifest.json")), default="none")
    attempt = max((path.name for path in run.glob("heartbeats/*")), default="none")
    path = run / name.replace("NEWEST", newest).replace("ATTEMPT", attempt)
    before = path.read_bytes() if path.is_file() else b""
    path.parent.mkdir(parents=True, exist_ok=True)
    SHAPES[shape](path, before)
    return path


def flipscale(*arguments: object, environment: Mapping[str, str] | None = None) -> Outcome:
    """Run a command; it gets SECONDS_PER_COMMAND."""
    process = subprocess.Popen(
        [sys.executable, "-m", "flipscale", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=SECONDS_PER_COMMAND)
    except subprocess.TimeoutExpired:
        process.kill()
        output, errors = process.communicate()
        return Outcome(process.returncode, output, errors, hung=True)
    return Outcome(process.returncode, output, errors, hung=False)
