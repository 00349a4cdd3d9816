"""Random damage of files of weights: read or refused in one sentence, whatever the library raises."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from flipscale.errors import UserError
from flipscale.interop.weights import read_weights

STATE = {"a": torch.arange(15.0).reshape(5, 3), "b": torch.ones(3).half(), "c": torch.arange(3)}


def write(name: str, path: Path) -> bytes:
    if name == "safetensors":
        save_file(STATE, path, metadata={"format": "pt"})
    else:
        torch.save({"state_dict": STATE}, path, _use_new_zipfile_serialization=name == "archive")
    return path.read_bytes()


def damaged(whole: bytes, count: int) -> Iterator[bytes]:
    """Yield copies with changed, flipped, replaced or missing bytes."""
    rng = random.Random(0)
    for _ in range(count):
        data = bytearray(whole)
        at = rng.randrange(len(data))
        kind = rng.randrange(4)
        if kind == 0:
            data[at] = rng.randrange(256)
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            data[at : at + rng.randrange(20)] = rng.randbytes(rng.randrange(20))
        else:
            data[rng.randrange(min(len(data), 1500))] ^= 1 << rng.randrange(8)
        yield bytes(data)


@pytest.mark.parametrize("count", [25, pytest.param(2000, marks=pytest.mark.long)])
@pytest.mark.parametrize(
    ("name", "suffix"), [("archive", "pt"), ("pickle", "pt"), ("safetensors", "safetensors")]
)
def test_damaged_weights_are_read_or_refused(name: str, suffix: str, count: int, tmp_path: Path) -> None:
    path = tmp_path / f"w.{suffix}"
    whole = write(name, path)
    assert set(read_weights(path).tensors) == set(STATE)

    refused = 0
    for data in damaged(whole, count):
        path.write_bytes(data)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read_weights(path)
        except UserError as error:
            refused += 1
            sentence = str(error).partition(":\npython -c")[0]  # the command that converts a pickle
        else:
            sentence = ""
        assert "\n" not in sentence
    assert 0 < refused <= count
