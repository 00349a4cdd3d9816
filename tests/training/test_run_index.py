"""The index of a run whose shards were moved: the same samples, or a refusal that changes nothing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from support.shards import encoded, picture, write_shards, write_tar

from flipscale.config import Data
from flipscale.data.shards.index_document import load_index
from flipscale.data.shards.storage import Storage
from flipscale.errors import UserError
from flipscale.runs.directory import RunDirectory
from flipscale.training.run_index import make_run_index


def data(folder: Path) -> Data:
    return Data.model_validate({"train": f"{folder}/{{00000..00001}}.tar", "tokenizer": {"vocab": "v.txt"}})


def files_below(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*.*")}


def index_from(folder: Path, run: RunDirectory) -> None:
    make_run_index(data(folder), run, run.path / "index", Storage())


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    write_shards(tmp_path / "shards", [3, 4])
    begun = RunDirectory(tmp_path / "run")
    begun.path.mkdir()
    index_from(tmp_path / "shards", begun)
    begun.index.write_text("{}")
    return begun


def test_moved_shards_are_indexed_again(run: RunDirectory, tmp_path: Path) -> None:
    before = files_below(run.path / "index")
    shutil.move(tmp_path / "shards", tmp_path / "moved")
    (run.path / "index_moved").mkdir()
    (run.path / "index_moved/index.json").write_text("of a start that was killed")
    index_from(tmp_path / "moved", run)

    after = files_below(run.path / "index")
    assert load_index(run.path / "index").shards[1].path == f"{tmp_path}/moved/00001.tar"
    assert {name for name in before if before[name] != after[name]} == {"index.json"}
    assert sorted(os.listdir(run.path)) == ["index", "index.json"]


@pytest.mark.parametrize("change", ["captions are shifted", "an image differs", "the order differs"])
def test_moved_shards_of_other_content_are_refused(run: RunDirectory, tmp_path: Path, change: str) -> None:
    before = files_below(run.path)
    moved = tmp_path / "moved"
    shutil.copytree(tmp_path / "shards", moved)
    if change == "the order differs":
        (moved / "00000.tar").rename(moved / "x")
        (moved / "00001.tar").rename(moved / "00000.tar")
        (moved / "x").rename(moved / "00001.tar")
    else:
        shift, image = (1, 0) if change == "captions are shifted" else (0, 99)
        members = [
            member
            for key in (0, 1, 2)
            for member in (
                (f"{key:09d}.jpg", encoded(picture(image if key == 1 and image else key))),
                (f"{key:09d}.txt", f"a red cat {(key + shift) % 3}".encode()),
            )
        ]
        write_tar(moved / "00000.tar", members)

    named = "other names or sizes" if change == "the order differs" else "of .*/moved/00000.tar has another"
    with pytest.raises(UserError, match=f"not those that {run.path} began with.*{named}"):
        index_from(moved, run)
    assert files_below(run.path) == before
    assert sorted(os.listdir(run.path)) == ["index", "index.json"]


def test_a_run_that_has_recorded_no_data_takes_any_shards(run: RunDirectory, tmp_path: Path) -> None:
    run.index.unlink()
    write_shards(tmp_path / "others", [5, 1])
    index_from(tmp_path / "others", run)
    assert load_index(run.path / "index").samples == 6
