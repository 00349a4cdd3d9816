"""A manifest protects itself: what it says is what was written, or it is refused."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flipscale.errors import UserError
from flipscale.order_digest import OrderDigest
from flipscale.progress import Progress
from flipscale.runs.directory import RunDirectory
from flipscale.runs.manifest import (
    Manifest,
    StoredFile,
    committed_checkpoints,
    committed_samples,
    directory_name,
    read_latest,
    read_manifest,
    samples_of,
)

OLD = Path(__file__).parents[1] / "fixtures/run_0_1_0/run/checkpoints/samples_000000000128"
WHOLE = replace(read_manifest(OLD), commit=3)


def test_text_is_read_back():
    text = WHOLE.to_json()
    assert Manifest.from_json(text.encode()) == WHOLE
    # The digest is that of the contents, not of their layout.
    assert Manifest.from_json(json.dumps(json.loads(text), sort_keys=True).encode()) == WHOLE


def test_manifest_of_version_1_is_read():
    manifest = read_manifest(OLD)
    assert manifest.progress == Progress(128, OrderDigest(257886842452595286), 0, 16)
    assert (manifest.permanent, manifest.commit, manifest.job["name"]) == (False, 0, "run_0_1_0")
    (file,) = manifest.files.values()
    assert file.bytes == 2733692


def unharmed_by_flips(bits: Iterable[int]) -> int:
    """Flip each bit of a manifest by itself; return how many are refused, if all others change nothing."""
    data = WHOLE.to_json().encode()
    refused = 0
    for bit in bits:
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            assert Manifest.from_json(bytes(damaged)) == WHOLE, bit
        except ValueError:
            refused += 1
    return refused


def test_flipped_bits_are_refused_or_change_nothing():
    size = len(WHOLE.to_json().encode())
    rng = random.Random(1)
    assert unharmed_by_flips(8 * byte + rng.randrange(8) for byte in range(size)) > 0.99 * size


@pytest.mark.slow
def test_every_flipped_bit_is_refused_or_changes_nothing():
    bits = 8 * len(WHOLE.to_json().encode())
    assert bits > 16_992
    assert unharmed_by_flips(range(bits)) > 0.99 * bits


def test_every_cut_is_refused():
    data = WHOLE.to_json().encode()
    for length in range(len(data)):
        with pytest.raises(ValueError, match=r"."):
            Manifest.from_json(data[:length])


def changed(**changes: object) -> Callable[[dict[str, Any]], None]:
    return lambda document: document.update(changes)


def changed_progress(**changes: object) -> Callable[[dict[str, Any]], None]:
    return lambda document: document["progress"].update(changes)


NAME = "shard-00001-model-00001-of-00001.safetensors"
STORED = {"bytes": 1, "sha256": "0" * 64}


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    "change",
    [
        changed(version=99),
        changed(version=0),
        changed(version="1"),
        changed(version=True),
        changed(version=1.0),
        changed(extra=1),
        changed(files={}),
        changed(files=[]),
        changed(files={"../x.safetensors": STORED}),
        changed(files={"/x.safetensors": STORED}),
        changed(files={"manifest.json": STORED}),
        changed(files={NAME: {**STORED, "bytes": -1}}),
        changed(files={NAME: {**STORED, "bytes": True}}),
        changed(files={NAME: {**STORED, "sha256": "0" * 63 + "G"}}),
        changed(files={NAME: {"bytes": 1}}),
        changed(files={NAME: {**STORED, "more": 1}}),
        changed(permanent=0),
        changed(permanent=None),
        changed(job=None),
        changed(job=["x"]),
        changed(progress={}),
        changed(progress=None),
        changed_progress(samples_seen=136),
        changed_progress(samples_seen=-128),
        changed_progress(samples_seen=128.0),
        changed_progress(samples_seen="128"),
        changed_progress(digest=1 << 64),
        changed_progress(optimizer_steps=None),
        changed_progress(skipped=0),
        lambda document: document.pop("files"),
        lambda document: document.pop("progress"),
        lambda document: document.pop("version"),
    ],
)
def test_other_contents_are_refused(version: int, change: Callable[[dict[str, Any]], None], tmp_path: Path):
    document = json.loads((OLD / "manifest.json").read_text() if version == 1 else WHOLE.to_json())
    change(document)
    path = tmp_path / directory_name(128)
    path.mkdir()
    (path / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match=r"."):
        read_manifest(path)


TEXTS = {
    "empty": "",
    "half": "{",
    "list": "[]",
    "mapping": "{}",
    "null": "null",
    "number": "0",
    "string": '"x"',
    "zeros": "\0" * 100,
    "deep list": "[" * 100_000,
    "deep mapping": '{"a":' * 100_000,
    "byte order mark": "\ufeff{}",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_every_other_text_is_refused(text: str, tmp_path: Path):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=r"."):
        read_manifest(tmp_path)


def test_other_kinds_of_files_are_refused(tmp_path: Path):
    for name in ("directory", "pipe", "latin"):
        (tmp_path / name).mkdir()
    (tmp_path / "directory/manifest.json").mkdir()
    os.mkfifo(tmp_path / "pipe/manifest.json")
    (tmp_path / "latin/manifest.json").write_bytes(WHOLE.to_json().replace("run", "\xfc").encode("latin-1"))
    for name in ("directory", "pipe"):
        with pytest.raises(IsADirectoryError, match="not a regular file"):
            read_manifest(tmp_path / name)
    with pytest.raises(ValueError, match="not UTF-8"):
        read_manifest(tmp_path / "latin")


def test_too_large_manifest_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    text = WHOLE.to_json()
    (tmp_path / "manifest.json").write_text(text)
    monkeypatch.setattr("flipscale.runs.manifest._LARGEST", len(text))
    assert read_manifest(tmp_path) == WHOLE
    monkeypatch.setattr("flipscale.runs.manifest._LARGEST", len(text) - 1)
    with pytest.raises(ValueError, match=f"more than {len(text) - 1} bytes"):
        read_manifest(tmp_path)


def test_newer_version_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("flipscale.runs.manifest.VERSION", 3)
    text = WHOLE.to_json()
    monkeypatch.undo()
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json: a newer flipscale wrote .* \(version 3\); update"):
        read_manifest(tmp_path)


def test_manifest_of_another_checkpoint_is_refused(tmp_path: Path):
    path = tmp_path / directory_name(136)
    path.mkdir()
    (path / "manifest.json").write_text(WHOLE.to_json())
    with pytest.raises(ValueError, match=f"it is the manifest of {directory_name(128)}"):
        read_manifest(path)


@pytest.mark.parametrize(
    ("name", "samples"),
    [
        ("samples_000000000128", 128),
        ("samples_000000000000", 0),
        ("samples_1000000000000", 10**12),
        ("samples_128", None),
        ("samples_0000000000128", None),
        ("samples_000000000128.old", None),
        ("samples_backup", None),
        ("samples_", None),
        ("samples_٠٠٠٠٠٠٠٠٠١٢٨", None),
        ("samples_00000000012²", None),
        ("samples_" + "9" * 20, 10**20 - 1),
        ("samples_" + "9" * 21, None),
        ("samples_" + "9" * 5000, None),
        ("000000000128", None),
    ],
)
def test_only_exact_names_count(name: str, samples: int | None):
    assert samples_of(name) == samples


def test_what_latest_names_is_the_newest(tmp_path: Path):
    run = RunDirectory(tmp_path)
    assert committed_samples(run) == 0
    for samples in (8, 16, 24):
        path = run.checkpoints / directory_name(samples)
        path.mkdir(parents=True)
        manifest = Manifest(Progress(samples), False, {NAME: StoredFile(1, "0" * 64)}, {})
        (path / "manifest.json").write_text(manifest.to_json())
    (run.checkpoints / "samples_backup").mkdir()
    (run.checkpoints / "samples_backup/manifest.json").write_text("{}")

    assert [entry.samples for entry in committed_checkpoints(run)] == [8, 16, 24]
    (run.checkpoints / "LATEST").write_text(directory_name(16) + "\n")
    assert [entry.samples for entry in committed_checkpoints(run)] == [8, 24, 16]
    assert committed_samples(run) == 16
    (run.checkpoints / "LATEST").write_bytes(b"\xff\x00")
    assert read_latest(run.checkpoints) == ""
    assert committed_samples(run) == 24
