"""Train, audit, evaluate, export and verify through the real commands, both families."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from flipscale.data.synthetic.dataset import SyntheticOptions, synthesize
from flipscale.data.synthetic.vocabulary import COLOURS, SHAPES
from flipscale.data.text.vocabulary import SPECIAL_TOKENS, write_vocabulary


def flipscale(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flipscale", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
@pytest.mark.executes  # every command once, as a user starts it
@pytest.mark.parametrize(
    ("model", "tokenizer"),
    [
        ("vit_micro_p8", {"kind": "wordpiece", "vocab": "vocab.txt", "context_length": 16}),
        pytest.param("clip_micro_p8", {"kind": "clip_bpe"}, marks=pytest.mark.long),
    ],
)
def test_from_shards_to_a_verified_openclip_directory(
    tmp_path: Path, model: str, tokenizer: dict[str, object]
) -> None:
    synthesize(tmp_path / "set", SyntheticOptions(image_size=32, train=128, val=20, test=80, shard_size=64))
    write_vocabulary(
        [*SPECIAL_TOKENS, *COLOURS, *SHAPES, *"abcdefghijklmnopqrstuvwxyz"], tmp_path / "vocab.txt"
    )
    job = {
        "name": "small",
        "model": model,
        "data": {"train": "set/train/{00000..00001}.tar", "tokenizer": tokenizer, "lanes": 8, "workers": 0},
        "phases": [{"name": "a", "samples": 160, "mask_ratio": 0.5, "batch_size": 16, "base_lr": 0.01}],
        "evaluation": {
            "zero_shot": {
                "seen": {
                    "data": "set/test/{00000..00001}.tar",
                    "classnames": "set/classnames.txt",
                    "templates": "set/templates.txt",
                }
            },
            "retrieval": {"captions": "set/val/00000.tar"},
        },
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    for arguments in (
        ("train", "job.yaml"),
        ("data", "audit", "runs/small"),
        ("eval", "runs/small", "--out", "results.json"),
        ("export", "runs/small", "out"),
        (
            "eval",
            "out",
            "--zero-shot",
            "set/test/{00000..00001}.tar",
            "--classnames",
            "set/classnames.txt",
            "--templates",
            "set/templates.txt",
            "--out",
            "exported.json",
        ),
    ):
        done = flipscale(tmp_path, *arguments)
        assert done.returncode == 0, f"{arguments}: {done.stderr}"
    of_run = json.loads((tmp_path / "results.json").read_text())
    of_export = json.loads((tmp_path / "exported.json").read_text())
    assert of_run["samples_seen"] == 160
    assert of_run["zero_shot"]["seen"]["top1"] == of_export["zero_shot"]["zero_shot"]["top1"]
    config = json.loads((tmp_path / "out" / "open_clip_config.json").read_text())
    assert config["flipscale"]["provenance"]["samples_seen"] == 160
    assert list((tmp_path / "runs/small/tensorboard").iterdir())

    # A weight changed after the export is noticed by the verification.
    weights = tmp_path / "out" / "open_clip_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-2] ^= 0x40
    weights.write_bytes(bytes(data))
    done = flipscale(tmp_path, "export", "runs/small", "out", "--verify")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
