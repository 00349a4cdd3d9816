"""`data synth`: what it writes is what it says, byte for byte the same each time, and worth learning."""

import io
import json
import re
import resource
import signal
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from braceexpand import braceexpand
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from webdataset.compat import WebDataset

from flipscale.data.synthetic import captions, rendering, scenes, vocabulary
from flipscale.data.synthetic import dataset as synthetic
from flipscale.data.synthetic.rendering import bounding_box, render
from flipscale.data.synthetic.samples import make_sample
from flipscale.errors import UserError

COLOUR = "|".join(vocabulary.COLOURS)
SHAPE = "|".join(vocabulary.SHAPES)
# Colour, maybe a texture, shape: "red star", "blue striped circles".
NAMED = re.compile(rf"({COLOUR}) (?:(?:striped|dotted|checked) )?({SHAPE})")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("synth") / "set"
    done = []
    summary = synthetic.synthesize(
        out, train=600, val=100, test=150, shard_size=250, seed=3, progress=done.append
    )
    assert sum(done) == summary.samples
    return summary


def coverage(thing, image_size: int, *, outline: bool = True) -> np.ndarray:
    """Return how much of each pixel an object covers: (image_size, image_size) uint8, 255 = wholly."""
    canvas = Image.new("L", (image_size, image_size))
    left, top, whole, filling = rendering._masks(thing, image_size)
    canvas.paste((whole if outline else filling).reduce(rendering.SUPERSAMPLING), (left, top))
    return np.asarray(canvas)


def samples_of(summary, split):
    """The samples of a split as stock webdataset reads them: a dict with the image as an array, each."""
    urls = list(braceexpand(next(s.pattern for s in summary.splits if s.name == split)))
    dataset: Any = WebDataset(urls, shardshuffle=False)
    return list(dataset.decode("rgb8"))


@pytest.fixture(scope="module")
def splits(made):
    return {split.name: samples_of(made, split.name) for split in made.splits}


def files(root: Path):
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_webdataset_reads_every_split_whole(made, splits):
    # 150 test images are 2.1 a class of 72, so 9 held-out classes get 18.75, rounded up.
    expected = {"train": 600, "val": 100, "test": 150, "test_heldout": 19}
    assert {name: len(samples) for name, samples in splits.items()} == expected
    assert {split.name: split.samples for split in made.splits} == expected
    assert [split.shards for split in made.splits] == [3, 1, 1, 1]
    for name, samples in splits.items():
        with_class = {"cls"} if name.startswith("test") else set()
        for sample in samples:
            assert {key for key in sample if not key.startswith("__")} == {"jpg", "txt", "json"} | with_class
            assert sample["jpg"].shape == (64, 64, 3)


def test_shards_look_like_those_of_img2dataset(made):
    with tarfile.open(made.root / "train" / "00002.tar") as tar:
        members = tar.getmembers()
    assert [member.name for member in members[:3]] == ["000020000.jpg", "000020000.json", "000020000.txt"]
    assert members[-1].name == "000020099.txt"
    assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in members} == {(0, 0, 0, "", 0o444)}
    assert sum(split.bytes for split in made.splits) == sum(
        p.stat().st_size for p in made.root.rglob("*.tar")
    )


def test_workers_do_not_change_a_byte(tmp_path):
    def make(name, seed=5, workers=0):
        synthetic.synthesize(
            tmp_path / name,
            image_size=32,
            train=45,
            val=10,
            test=20,
            shard_size=20,
            seed=seed,
            workers=workers,
        )

    make("alone")
    make("two", workers=2)
    assert files(tmp_path / "alone") == files(tmp_path / "two")
    make("other", seed=6)
    assert files(tmp_path / "alone")["train/00000.tar"] != files(tmp_path / "other")["train/00000.tar"]


def test_a_sample_depends_on_seed_split_and_number_only(made, splits):
    scene, text, jpeg = make_sample(3, "train", 412, 64)
    sample = splits["train"][412]
    assert sample["__key__"] == "000010162"
    assert sample["txt"] == text
    assert np.array_equal(sample["jpg"], np.asarray(Image.open(io.BytesIO(jpeg))))
    assert make_sample(3, "val", 412, 64)[1:] != (text, jpeg)
    # The same scene at another size: only the pixels differ.
    assert make_sample(3, "train", 412, 48)[:2] == (scene, text)


def test_heldout_pairs_occur_in_their_split_alone(splits):
    held_out = set(vocabulary.HELD_OUT)
    assert len(held_out) == 9
    assert {colour for colour, _ in held_out} == set(vocabulary.COLOURS)
    assert {shape for _, shape in held_out} == set(vocabulary.SHAPES)
    for name, samples in splits.items():
        for sample in samples:
            drawn = {(thing["colour"], thing["shape"]) for thing in sample["json"]["objects"]}
            told = set(NAMED.findall(sample["txt"].lower()))
            assert told == drawn, sample["txt"]
            if name == "test_heldout":
                assert len(sample["json"]["objects"]) == 1
                assert drawn <= held_out
            else:
                assert not drawn & held_out


def test_classes_match_names_and_are_balanced(made, splits):
    names = made.classnames.read_text().splitlines()
    assert len(names) == len(set(names)) == 81
    listed = json.loads((made.root / "classes.json").read_text())
    assert [entry["name"] for entry in listed] == names
    held_out = {entry["index"] for entry in listed if entry["held_out"]}
    for split, classes in (("test", set(range(81)) - held_out), ("test_heldout", held_out)):
        for sample in splits[split]:
            thing = sample["json"]["objects"][0]
            assert names[sample["cls"]] == f"{thing['colour']} {thing['shape']}"
        counts = Counter(sample["cls"] for sample in splits[split])
        assert set(counts) == classes
        assert max(counts.values()) - min(counts.values()) <= 1
    templates = made.templates.read_text().splitlines()
    assert len(templates) >= 5
    assert all(template.count("{}") == 1 for template in templates)


def centre(thing):
    left, top, right, bottom = thing["box"]
    return (left + right) / 2, (top + bottom) / 2


def holds(relation, one, other):
    """Whether the boxes of two objects bear out "one relation other"."""
    (x, y), (other_x, other_y) = centre(one), centre(other)
    box, other_box = one["box"], other["box"]
    return {
        "left of": box[2] < other_box[0] and x < other_x,
        "right of": box[0] > other_box[2] and x > other_x,
        "above": box[3] < other_box[1] and y < other_y,
        "below": box[1] > other_box[3] and y > other_y,
        "inside": other_box[0] < box[0] < box[2] < other_box[2]
        and other_box[1] < box[1] < box[3] < other_box[3],
    }[relation]


def test_relations_hold_in_the_picture(splits):
    seen = Counter()
    for sample in splits["train"] + splits["val"]:
        first, *others = sample["json"]["objects"]
        relation = sample["json"]["relation"]
        seen[relation] += 1
        assert (relation is None) == (not others)
        for other in others:
            assert holds(relation, first, other), sample["json"]
            if relation != "inside":
                dx, dy = np.abs(np.subtract(centre(first), centre(other)))
                assert len(others) == 2 or (dx > dy) == (relation in ("left of", "right of"))
    assert set(seen) == {None, "inside", *vocabulary.RELATIONS}
    assert 0.54 < seen[None] / 700 < 0.66  # 0.6 +- 3 standard deviations hold one object


SAID = {
    word: relation for relation in (*vocabulary.RELATIONS, "inside") for word in captions._WORDS[relation]
}


def test_captions_tell_the_truth(splits):
    for sample in splits["train"] + splits["val"] + splits["test"]:
        text, truth = sample["txt"].lower().rstrip("."), sample["json"]
        assert truth["caption"] == sample["txt"]
        things = truth["objects"]
        # Sizes, textures and grounds that are told occur in the picture.
        for word, size in (("little", "small"), ("small", "small"), ("big", "large"), ("large", "large")):
            assert not re.search(rf"\b{word}\b", text) or size in {t["size"] for t in things}, text
        for texture, noun in (("striped", "stripes"), ("dotted", "dots"), ("checked", "checks")):
            assert not re.search(rf"\b({texture}|{noun})\b", text) or texture in {
                t["texture"] for t in things
            }
        if ground := re.search(r"(\w+) (background|gradient)$", text):
            assert ground[1] == truth["background"]["colour"]
            assert ground[2] == "background" or truth["background"]["kind"] == "gradient"
        assert "noisy" not in text or truth["background"]["kind"] == "noisy"
        # A relation word stands between the first object and the others, and is theirs.
        said = [word for word in SAID if re.search(rf"\b{word} (a|an|two) ", text)]
        if said:
            assert {SAID[word] for word in said} == {truth["relation"]}
            named = NAMED.findall(text)
            assert named[0] == (things[0]["colour"], things[0]["shape"]), text
        for count, word in ((2, "two"), (3, "three")):
            if re.search(rf"\b{word}\b", text):
                assert max(Counter((t["colour"], t["shape"]) for t in things).values()) == count
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]|  | ,", text), text


def test_captions_vary(splits):
    captions = [sample["txt"] for sample in splits["train"]]
    assert len(set(captions)) > 0.95 * len(captions)
    skeletons = Counter(NAMED.sub("THING", caption) for caption in captions)
    assert len(skeletons) > 100
    said = " ".join(captions)
    for word in (
        *SAID,
        "two",
        "three",
        "next to",
        "gradient",
        "noisy",
        "striped",
        "dotted",
        "checked",
        "drawing",
    ):
        assert word in said


def palette_shares(pixels):
    """Share of the pixels (n, 3) nearest to each named colour."""
    palette = np.array(list(vocabulary.COLOURS.values()))
    nearest = ((pixels[:, None, :].astype(int) - palette) ** 2).sum(-1).argmin(1)
    return dict(
        zip(vocabulary.COLOURS, np.bincount(nearest, minlength=len(palette)) / len(pixels), strict=True)
    )


@pytest.mark.parametrize("split", ["train", "test", "test_heldout"])
def test_painted_colour_is_the_named_one_after_jpeg(split):
    for number in range(150):
        scene, text, jpeg = make_sample(0, split, number, 64)
        picture = np.asarray(Image.open(io.BytesIO(jpeg)))
        for thing in scene.objects:
            pixels = picture[coverage(thing, 64, outline=False) == 255]
            # Bands of a pattern are darker than the named colour: its brighter half shows it.
            light = pixels.sum(1)
            shares = palette_shares(pixels[light >= np.median(light)] if thing.texture != "plain" else pixels)
            assert max(shares, key=lambda name: shares[name]) == thing.colour, (number, text, shares)


def test_a_dark_line_parts_every_object_from_its_ground():
    for number in range(60):
        scene, text, _ = make_sample(0, "train", number, 64)
        picture = np.asarray(render(scene, 256)).mean(-1)
        for thing in scene.objects:
            filling = coverage(thing, 256, outline=False)
            line = picture[(coverage(thing, 256) == 255) & (filling == 0)]
            assert len(line) > 0.1 * (filling == 255).sum(), text
            # The darkest ground is gray at the dark end of a gradient, 0.65 * 182 = 118.
            assert line.max() < 60, text


def test_shapes_differ_in_silhouette():
    """No two shapes of the same extent cover the same 90 %, at the smallest lone size, turned or not."""

    def silhouette(shape, rotation):
        thing = scenes.SceneObject(shape, "red", "plain", "small", (0.5, 0.5), 0.45, rotation, (255, 0, 0))
        return coverage(thing, 64) / 255

    for i, one in enumerate(vocabulary.SHAPES):
        for other in vocabulary.SHAPES[i + 1 :]:
            for turn in (-15, 0, 15):
                a, b = silhouette(one, 0), silhouette(other, turn)
                assert np.minimum(a, b).sum() / np.maximum(a, b).sum() < 0.9, (one, other, turn)


@given(seed=st.integers(0, 2**32), size=st.sampled_from([16, 33, 64, 130]))
def test_objects_lie_inside_the_picture_and_apart(seed, size):
    scene = scenes.draw_scene(Random(seed))
    picture = render(scene, size)
    assert picture.size == (size, size)
    assert picture.mode == "RGB"
    for thing in scene.objects:
        left, top, right, bottom = bounding_box(thing, size)
        assert -1e-9 <= left < right <= size + 1e-9
        assert -1e-9 <= top < bottom <= size + 1e-9
        assert max(right - left, bottom - top) == pytest.approx(thing.extent * size)
        assert thing.extent >= (0.45 if len(scene.objects) == 1 else 0.25)
    covered = np.sum([coverage(thing, 512) > 0 for thing in scene.objects], axis=0)
    assert covered.max() == 1  # nothing hides anything, also not what a ring holds


def test_positions_sizes_and_grounds_of_the_test_split_vary():
    drawn = [make_sample(0, "test", number, 64)[0] for number in range(300)]
    x, y = np.array([scene.objects[0].centre for scene in drawn]).T
    assert min(x.std(), y.std()) > 0.08
    extents = np.array([scene.objects[0].extent for scene in drawn])
    assert extents.min() < 0.5
    assert extents.max() > 0.9
    assert len({(scene.background.colour, scene.background.kind) for scene in drawn}) == 15
    assert {scene.objects[0].texture for scene in drawn} == set(vocabulary.TEXTURES)


def test_any_size_and_splits_left_out(tmp_path):
    summary = synthetic.synthesize(tmp_path / "set", image_size=16, train=3, val=0, test=0)
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
    ("wrong", "told"),
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
def test_wrong_numbers_are_refused(tmp_path, wrong, told):
    with pytest.raises(UserError, match=told):
        synthetic.synthesize(tmp_path / "set", **wrong)
    assert not (tmp_path / "set").exists()


def test_a_directory_in_use_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match=r"not empty \(it holds thesis.tex\)"):
        synthetic.synthesize(tmp_path, train=1)
    with pytest.raises(UserError, match="a file is in its place"):
        synthetic.synthesize(tmp_path / "thesis.tex", train=1)
    with pytest.raises(UserError, match="a file is in its place"):
        synthetic.synthesize(tmp_path / "thesis.tex" / "set", train=1)
    assert files(tmp_path) == {"thesis.tex": b"mine"}


def test_a_full_disk_is_told_in_a_sentence_and_leaves_nothing(tmp_path):
    """The limit on file sizes is a disk that really fills up: the write itself fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(UserError, match="can't be written"):
            synthetic.synthesize(tmp_path / "set", train=100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert list((tmp_path / "set").iterdir()) == []


def test_an_interrupt_leaves_an_empty_directory_to_try_again(tmp_path):
    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthetic.synthesize(tmp_path / "set", train=20, shard_size=5, progress=interrupt)
    assert list((tmp_path / "set").iterdir()) == []
    assert synthetic.synthesize(tmp_path / "set", train=20, val=0, test=0).samples == 20


def test_no_heavy_import():
    """Worker processes start fresh: they must not pay for torch."""
    code = "import sys, flipscale.data.synthetic.dataset; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
