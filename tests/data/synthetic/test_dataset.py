"""`data synth`: the same bytes each time, in the layout of img2dataset, and nothing left by a failure."""

import io
import json
import resource
import signal
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.scenes import NAMED, samples_of

from flipscale.data.synthetic import vocabulary
from flipscale.data.synthetic.dataset import SyntheticOptions, synthesize
from flipscale.data.synthetic.samples import make_sample
from flipscale.errors import UserError


def files(root: Path):
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_webdataset_reads_every_split_whole(synthetic_set, splits):
    # 150 test images are 2.1 per class of 72, so the 9 held-out classes get 18.75, rounded up.
    expected = {"train": 600, "val": 100, "test": 150, "test_heldout": 19}
    assert {name: len(samples) for name, samples in splits.items()} == expected
    assert {split.name: split.samples for split in synthetic_set.splits} == expected
    assert [split.shards for split in synthetic_set.splits] == [3, 1, 1, 1]
    for name, samples in splits.items():
        with_class = {"cls"} if name.startswith("test") else set()
        for sample in samples:
            assert {key for key in sample if not key.startswith("__")} == {"jpg", "txt", "json"} | with_class
            assert sample["jpg"].shape == (64, 64, 3)


def test_shards_look_like_those_of_img2dataset(synthetic_set):
    with tarfile.open(synthetic_set.root / "train" / "00002.tar") as tar:
        members = tar.getmembers()
    assert [member.name for member in members[:3]] == ["000020000.jpg", "000020000.json", "000020000.txt"]
    assert members[-1].name == "000020099.txt"
    assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in members} == {(0, 0, 0, "", 0o444)}
    assert sum(split.bytes for split in synthetic_set.splits) == sum(
        p.stat().st_size for p in synthetic_set.root.rglob("*.tar")
    )


def test_workers_do_not_change_a_byte(tmp_path):
    def make(name, seed=5, workers=0):
        options = SyntheticOptions(image_size=32, train=45, val=10, test=20, shard_size=20, seed=seed)
        synthesize(tmp_path / name, options, workers=workers)

    make("one")
    make("two", workers=2)
    assert files(tmp_path / "one") == files(tmp_path / "two")
    make("other", seed=6)
    assert files(tmp_path / "one")["train/00000.tar"] != files(tmp_path / "other")["train/00000.tar"]


def test_sample_depends_only_on_seed_split_and_number(synthetic_set, splits):
    scene, text, jpeg = make_sample(3, "train", 412, 64)
    sample = splits["train"][412]
    assert sample["__key__"] == "000010162"
    assert sample["txt"] == text
    assert np.array_equal(sample["jpg"], np.asarray(Image.open(io.BytesIO(jpeg))))
    assert make_sample(3, "val", 412, 64)[1:] != (text, jpeg)
    # At another size, the scene is the same and only the pixels differ.
    assert make_sample(3, "train", 412, 48)[:2] == (scene, text)


def test_heldout_pairs_occur_only_in_their_split(splits):
    held_out = set(vocabulary.HELD_OUT)
    assert len(held_out) == 9
    assert {colour for colour, _ in held_out} == set(vocabulary.COLOURS)
    assert {shape for _, shape in held_out} == set(vocabulary.SHAPES)
    for name, samples in splits.items():
        for sample in samples:
            drawn = {(thing["colour"], thing["shape"]) for thing in sample["json"]["objects"]}
            named = set(NAMED.findall(sample["txt"].lower()))
            assert named == drawn, sample["txt"]
            if name == "test_heldout":
                assert len(sample["json"]["objects"]) == 1
                assert drawn <= held_out
            else:
                assert not drawn & held_out


def test_classes_match_names_and_are_balanced(synthetic_set, splits):
    names = synthetic_set.classnames.read_text().splitlines()
    assert len(names) == len(set(names)) == 81
    listed = json.loads((synthetic_set.root / "classes.json").read_text())
    assert [entry["name"] for entry in listed] == names
    held_out = {entry["index"] for entry in listed if entry["held_out"]}
    for split, classes in (("test", set(range(81)) - held_out), ("test_heldout", held_out)):
        for sample in splits[split]:
            thing = sample["json"]["objects"][0]
            assert names[sample["cls"]] == f"{thing['colour']} {thing['shape']}"
        counts = Counter(sample["cls"] for sample in splits[split])
        assert set(counts) == classes
        assert max(counts.values()) - min(counts.values()) <= 1
    templates = synthetic_set.templates.read_text().splitlines()
    assert len(templates) >= 5
    assert all(template.count("{}") == 1 for template in templates)


def test_any_size_and_splits_left_out(tmp_path):
    summary = synthesize(tmp_path / "set", SyntheticOptions(image_size=16, train=3, val=0, test=0))
    assert [split.name for split in summary.splits] == ["train"]
    assert sorted(path.name for path in summary.root.iterdir()) == [
        "README.md",
        "classes.json",
        "classnames.txt",
        "templates.txt",
        "train",
    ]
    assert summary.splits[0].pattern.endswith("train/00000.tar")
    assert all(sample["jpg"].shape == (16, 16, 3) for sample in samples_of(summary, "train"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"image_size": 15}, "at least 16"),
        ({"train": -1}, "--train 0 or more"),
        ({"train": 0}, "--train 1 or more"),
        ({"val": -3}, "val is -3"),
        ({"test": -1}, "test is -1"),
        ({"shard_size": 0}, "shard size is 0"),
        ({"shard_size": 10_001}, "1 to 10000"),
        ({"workers": -1}, "workers is -1"),
    ],
)
def test_wrong_numbers_are_refused(tmp_path, wrong, message):
    workers = wrong.get("workers", 0)
    options = {name: number for name, number in wrong.items() if name != "workers"}

    with pytest.raises(UserError, match=message):
        synthesize(tmp_path / "set", SyntheticOptions(**options), workers=workers)
    assert not (tmp_path / "set").exists()


def test_directory_in_use_is_refused_and_unchanged(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match=r"not empty \(it holds thesis.tex\)"):
        synthesize(tmp_path, SyntheticOptions(train=1))
    with pytest.raises(UserError, match="a file is in its place"):
        synthesize(tmp_path / "thesis.tex", SyntheticOptions(train=1))
    with pytest.raises(UserError, match="a file is in its place"):
        synthesize(tmp_path / "thesis.tex" / "set", SyntheticOptions(train=1))
    assert files(tmp_path) == {"thesis.tex": b"mine"}


def test_full_disk_is_reported_and_leaves_nothing(tmp_path):
    """A limit on the size of files stands for the full disk: the write itself fails, as on a real one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(UserError, match="can't be written"):
            synthesize(tmp_path / "set", SyntheticOptions(train=100))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert list((tmp_path / "set").iterdir()) == []


def test_interrupt_leaves_an_empty_directory_to_try_again(tmp_path):
    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthesize(tmp_path / "set", SyntheticOptions(train=20, shard_size=5), progress=interrupt)
    assert list((tmp_path / "set").iterdir()) == []
    assert synthesize(tmp_path / "set", SyntheticOptions(train=20, val=0, test=0)).samples == 20


def test_no_heavy_import():
    """Worker processes are spawned, and must not pay for an import of torch."""
    code = "import sys, flipscale.data.synthetic.dataset; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
