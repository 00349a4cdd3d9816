"""Servers that demand credentials: references, ~/.netrc and tokens open them, and no file shows these."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import yaml
from support.range_server import RangeServer, serving
from support.readers import hasty
from support.shards import write_shards
from support.tiny_run import TinyRun

from flipscale.config import load_job
from flipscale.data.shards.index import expand_shards
from flipscale.data.shards.index_document import load_index
from flipscale.data.shards.indexing import build_index
from flipscale.data.shards.storage import DataReadError
from flipscale.errors import UserError
from flipscale.orchestration.cluster.submission import check_no_secret_variables
from flipscale.runs.directory import RunDirectory

SECRETS = ("hunter2hunter2", "renewed9renewed9")
BASIC = "Basic " + base64.b64encode(b"ada:hunter2hunter2").decode()


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[RangeServer]:
    write_shards(tmp_path / "www", [3, 2])
    with serving(tmp_path / "www") as server:
        yield server


def wants_signature(signature: str) -> Callable[[str, Mapping[str, str]], int]:
    return lambda path, headers: 200 if path.endswith(f"?sig={signature}") else 403


def wants_header(value: str) -> Callable[[str, Mapping[str, str]], int]:
    return lambda path, headers: 200 if headers.get("Authorization") == value else 401


def write_netrc(path: Path, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text(f"machine {host} login ada password hunter2hunter2\n")
    path.chmod(0o600)
    monkeypatch.setenv("NETRC", str(path))


def holders(root: Path) -> list[Path]:
    """Return the files below a directory that hold a secret, or its encoded form."""
    encoded = [BASIC.partition(" ")[2].encode()]
    forms = [secret.encode() for secret in SECRETS] + encoded
    files = [path for path in root.rglob("*") if path.is_file()]
    assert files
    return [path for path in files if any(form in path.read_bytes() for form in forms)]


def test_references_and_netrc_open_what_is_guarded(guarded, tmp_path, monkeypatch):
    host = guarded.address.removeprefix("http://")
    guarded.guard = wants_header(BASIC)
    with pytest.raises(UserError, match=r"asks for credentials \(HTTP 401\); put `machine HOST login USER"):
        hasty().read(f"{guarded.address}/00000.tar", 0, 10)

    monkeypatch.setenv("PASSWORD", "hunter2hunter2")
    assert len(hasty().read(f"http://ada:${{PASSWORD}}@{host}/00000.tar", 0, 10)) == 10
    write_netrc(tmp_path / "netrc", "127.0.0.1", monkeypatch)
    assert len(hasty().read(f"{guarded.address}/00000.tar", 0, 10)) == 10

    guarded.guard = wants_header("Bearer other")
    with pytest.raises(UserError, match=r"refuses the credentials that it was sent \(HTTP 401\)"):
        hasty().read(f"{guarded.address}/00000.tar", 0, 10)
    write_netrc(tmp_path / "netrc", "another.host", monkeypatch)
    monkeypatch.setenv("FLIPSCALE_HTTP_TOKEN", "other")
    assert len(hasty().read(f"{guarded.address}/00000.tar", 0, 10)) == 10

    (tmp_path / "netrc").write_text("machine 127.0.0.1 login ada password hunter2 hunter3 hunter4\n")
    with pytest.raises(UserError, match=r"netrc cannot be read \(line 1 is not of the form [^3-4]*$"):
        hasty().read(f"{guarded.address}/00000.tar", 0, 10)

    guarded.guard = wants_signature("other")
    (tmp_path / "netrc").unlink()
    monkeypatch.setenv("SIG", "hunter2hunter2")
    with pytest.raises(DataReadError, match=r"HTTP 403 Forbidden; is SIG still valid\?") as refused:
        hasty().read(f"{guarded.address}/00000.tar?sig=${{SIG}}", 0, 10)
    assert "hunter2" not in str(refused.value)


def test_an_index_belongs_to_its_shards_whatever_their_signature(guarded, tmp_path, monkeypatch):
    monkeypatch.setenv("SIG", "hunter2hunter2")
    guarded.guard = wants_signature("hunter2hunter2")
    pattern = f"{guarded.address}/{{00000..00001}}.tar?sig=${{SIG}}"
    build_index(pattern, tmp_path / "index", storage=hasty())
    assert holders(tmp_path / "index") == []

    # An index of an earlier version has the signature of its time in it.
    file = tmp_path / "index" / "index.json"
    file.write_text(file.read_text().replace("${SIG}", "expired"))
    paths = expand_shards(pattern)
    index = load_index(tmp_path / "index").located(paths, pattern)
    assert [shard.path for shard in index.shards] == paths
    index.verify(hasty())
    with pytest.raises(UserError, match="is of 2 shards"):
        index.located(expand_shards(pattern.replace("00001", "00002")), pattern)


def test_commands_get_values_and_messages_do_not_show_them(tmp_path, monkeypatch):
    program = tmp_path / "fetch"
    program.write_text('#!/bin/sh\necho "$*" > $(dirname $0)/arguments\necho "no such key: $2" >&2\nexit 3\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("KEY", "hunter2hunter2 $(id)")
    with pytest.raises(DataReadError, match=r"no such key: \$\{KEY\}") as refused:
        hasty("fetch").open("pipe:fetch --key ${KEY} 0.tar")
    assert (tmp_path / "arguments").read_text() == "--key hunter2hunter2 $(id) 0.tar\n"
    assert "hunter2" not in str(refused.value)


def test_secrets_are_refused_before_they_are_recorded(tiny_run, tmp_path):
    run: TinyRun = tiny_run(data={"train": "https://ada:hunter2hunter2@h/{00000..00002}.tar"})
    command = [sys.executable, "-m", "flipscale"]
    calls = (
        [*command, "train", str(run.job)],
        [*command, "submit", str(run.job), "--cluster", "local"],
        [*command, "data", "index", "https://h/0.tar?token=hunter2hunter2", str(run.output)],
    )
    for call in calls:
        done = subprocess.run(call, capture_output=True, text=True, check=False)
        assert done.returncode == 2, done.stderr
        assert "to everybody; write ${NAME} in its place and set the environment variable NAME" in done.stderr
        assert "hunter2" not in done.stdout + done.stderr
        assert not (run.output / "job.yaml").exists()
        assert not (run.output / "index.json").exists()

    preview = subprocess.run([*calls[1], "--dry-run"], capture_output=True, text=True, check=False)
    assert "data.train has a user and password in the address https://h/" in preview.stdout + preview.stderr
    assert "hunter2" not in preview.stdout + preview.stderr


@pytest.mark.parametrize("secret", ["hunter2/hunter3", "hunter2#hunter3", "80/hunter2", "80?hunter"])
def test_a_password_that_breaks_its_address_is_not_shown(monkeypatch, secret):
    monkeypatch.setenv("PASSWORD", secret)
    with pytest.raises(
        UserError, match=r"with the value of \$\{PASSWORD\}; write characters .* %2F"
    ) as refused:
        hasty().status("http://ada:${PASSWORD}@127.0.0.1:9/0.tar")
    assert "hunter" not in str(refused.value)


def test_site_files_do_not_carry_secrets(tiny_run):
    job = load_job(tiny_run(data={"train": "https://h/{00000..00002}.tar?${SIG}"}).job)
    check_no_secret_variables(job, ["OMP_NUM_THREADS", "SIG_FILE"])
    for name in ("SIG", "FLIPSCALE_HTTP_TOKEN"):
        with pytest.raises(UserError, match=f"the site file sets {name}, which the batch script would show"):
            check_no_secret_variables(job, [name])


@pytest.mark.slow
def test_a_signed_run_trains_resumes_and_shows_nothing(data_set, tiny_run, tmp_path, monkeypatch):
    """The signature expires in the middle of the run; the next start has a renewed one."""
    with serving(data_set / "train") as server:
        train = f"{server.address}/{{00000..00002}}.tar?sig=${{SIG}}"
        run: TinyRun = tiny_run(data={"train": train, "workers": 1})
        good = wants_signature(SECRETS[0])
        server.guard = lambda path, headers: 403 if server.requests > 700 else good(path, headers)
        monkeypatch.setenv("SIG", SECRETS[0])
        first = run.train("logging.tensorboard=true")
        assert first.returncode == 75, first.stderr
        assert "HTTP 403 Forbidden; is SIG still valid?" in first.stderr
        assert 0 < run.last_manifest()["progress"]["samples_seen"] < 792

        server.guard = wants_signature(SECRETS[1])
        monkeypatch.setenv("SIG", SECRETS[1])
        second = run.train()
        assert second.returncode == 0, second.stderr
        assert "resuming from" in second.stderr
        assert "indexing" not in second.stderr

        outputs = [first, second]
        for command in (["data", "audit"], ["report"], ["status"], ["export"]):
            argv = [sys.executable, "-m", "flipscale", *command, str(run.output)]
            argv += [str(tmp_path / "exported")] if command == ["export"] else []
            done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False)
            outputs.append(done)
            assert outputs[-1].returncode == 0, outputs[-1].stderr

    assert list((tmp_path / "reports").rglob("*.html"))
    assert holders(tmp_path) == []
    assert [out for out in outputs if any(s in out.stdout + out.stderr for s in SECRETS)] == []
    assert f"train: {train}" in (run.output / "job.yaml").read_text()


@pytest.mark.slow
def test_a_run_that_has_recorded_a_secret_resumes_with_a_warning(data_set, tiny_run, monkeypatch):
    """A run of an earlier version: its job and its index have the signature in them."""
    with serving(data_set / "train") as server:
        train = f"{server.address}/{{00000..00002}}.tar?sig=${{SIG}}"
        run: TinyRun = tiny_run(data={"train": train})
        monkeypatch.setenv("SIG", SECRETS[0])
        assert run.train().returncode == 0
        for path in [run.job, *run.output.rglob("*.json"), run.output / "job.yaml"]:
            path.write_text(path.read_text().replace("${SIG}", SECRETS[0]))
        for manifest in run.output.rglob("manifest.json"):
            document = {**json.loads(manifest.read_text()), "version": 1}
            del document["sha256"], document["commit"]
            manifest.write_text(json.dumps(document))
        monkeypatch.delenv("SIG")

        job = yaml.safe_load(run.job.read_text())
        job["phases"].append({**job["phases"][1], "name": "more", "samples": 80})
        run.job.write_text(yaml.safe_dump(job))
        resumed = run.train()
        assert resumed.returncode == 0, resumed.stderr
        assert "data.train has a signature or token (the parameter 'sig') in the address" in resumed.stderr
        assert SECRETS[0] not in resumed.stderr
        assert RunDirectory(run.output).job.exists()

        # Another secret is new, and is refused.
        other = run.train(f"data.train={train.replace('${SIG}', SECRETS[1])}")
        assert other.returncode == 2
        assert "which the run directory would show to everybody" in other.stderr
