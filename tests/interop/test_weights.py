"""Files of weights: which one is taken, what is read, and what is refused because it could run code."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from flipscale.errors import UserError
from flipscale.interop.weights import WEIGHTS, find_weights, read_weights
from flipscale.third_party import import_open_clip

open_clip = import_open_clip()


CFG: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 128, "patch_size": 16},
    "text_cfg": {"width": 64, "heads": 2, "layers": 2},
}


def stock(**changes: Any) -> torch.nn.Module:
    """Return OpenCLIP's own model without a weight at a trivial value."""
    torch.manual_seed(0)
    model = open_clip.CLIP(**CFG, **changes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


def test_weights_in_a_directory_are_those_that_open_clip_takes(tmp_path: Path) -> None:
    for name in ("zz.bin", "model.pth", "pytorch_model.bin", "open_clip_pytorch_model.bin", WEIGHTS):
        (tmp_path / name).touch()
        assert find_weights(tmp_path) == Path(open_clip.factory._find_checkpoint_in_dir(tmp_path))


class Harmful:
    """An object whose pickle calls a function of the attacker's choice."""

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (Path("harm"),)


@pytest.mark.slow
def test_pickle_that_runs_code_is_refused_and_can_be_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    state = stock().state_dict()
    torch.save({"state_dict": state, "args": Harmful()}, "w.pt")

    with pytest.raises(UserError, match="could run code when it is read, so it is refused") as refused:
        read_weights(Path("w.pt"))
    assert not Path("harm").exists()
    sentence, command = str(refused.value).split("\n", 1)

    assert sentence.endswith("give w.safetensors:")
    subprocess.run([sys.executable, *shlex.split(command)[1:]], check=True)

    assert Path("harm").exists()  # the test's file does run code
    converted = read_weights(Path("w.safetensors")).tensors

    assert converted.keys() == state.keys()
    assert all(torch.equal(converted[name], state[name]) for name in state)


def test_other_files_are_refused_in_one_sentence(tmp_path: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "script.pt")  # as OpenAI published CLIP
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    (tmp_path / "text.pt").write_text("no weights")
    (tmp_path / "empty.pt").touch()
    torch.save(stock().state_dict(), tmp_path / "cut.pt")
    whole = (tmp_path / "cut.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])

    for name, message in (
        ("script.pt", "is a TorchScript program"),
        ("tensor.pt", "holds no state dict"),
        ("text.pt", "is neither a safetensors file nor one of torch.save"),
        ("empty.pt", "is empty"),
        ("cut.pt", "is damaged"),
        ("missing.pt", "does not exist|do not exist"),
    ):
        with pytest.raises(UserError, match=message):
            read_weights(tmp_path / name)
