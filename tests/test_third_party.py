"""Imports next to any torchvision, each in a fresh interpreter, since a process imports only once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

LOADED = "sorted(name for name in sys.modules if name.split('.')[0] == 'torchvision')"


def run(code: str, *search: Path) -> str:
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (*search, root)))}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def package(directory: Path, init: str) -> Path:
    """Write a stand-in for torchvision, whose `__init__` first imports its one submodule."""
    (directory / "torchvision").mkdir()
    (directory / "torchvision" / "extension.py").write_text("")
    (directory / "torchvision" / "__init__.py").write_text(f"from torchvision import extension\n{init}\n")
    return directory


def test_open_clip_imports_and_its_preprocessing_works() -> None:
    code = """
from PIL import Image
from flipscale.third_party import import_open_clip
open_clip = import_open_clip()
assert import_open_clip() is open_clip
import torchvision
preprocess = open_clip.image_transform(32, is_train=False)
print(tuple(preprocess(Image.new("RGB", (50, 40))).shape))
"""
    assert run(code) == "(3, 32, 32)"


def test_working_torchvision_is_not_changed(tmp_path: Path) -> None:
    code = f"""
import sys, torch
from flipscale import third_party
third_party._import_torchvision()
print({LOADED}, third_party._declarations)
"""
    assert run(code, package(tmp_path, "")) == "['torchvision', 'torchvision.extension'] []"


def test_missing_operators_are_declared_and_the_import_is_repeated(tmp_path: Path) -> None:
    init = (
        'import torch\ntorch.library.register_fake("torchvision::nms")(lambda dets, scores, threshold: dets)'
    )
    code = f"""
import sys, torch
from flipscale import third_party
third_party._import_torchvision()
print({LOADED}, len(third_party._declarations), torch.ops.torchvision.nms.default._schema.name)
"""
    expected = "['torchvision', 'torchvision.extension'] 1 torchvision::nms"
    assert run(code, package(tmp_path, init)) == expected


@pytest.mark.parametrize("failure", ["RuntimeError('disk on fire')", "ImportError('libjpeg')"])
def test_other_failure_is_raised_and_leaves_no_modules(tmp_path: Path, failure: str) -> None:
    code = f"""
import sys
from flipscale import third_party
try:
    third_party.import_open_clip()
except Exception as error:
    print(error, {LOADED}, third_party._declarations)
"""
    message = failure.split("'")[1]
    assert run(code, package(tmp_path, f"raise {failure}")) == f"{message} [] []"
