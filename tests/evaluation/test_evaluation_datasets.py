"""Evaluation sets from real tars and folders: OpenCLIP's pixels, nothing dropped in silence, no half sets."""

import io
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.evaluation_samples import encoded, noise, swatch, write_tar

from flipscale.errors import UserError
from flipscale.evaluation.class_folders import class_folders, open_class_folders
from flipscale.evaluation.decoding import Decoding, Reader, square_view
from flipscale.evaluation.labels import label_of
from flipscale.evaluation.samples import RawSample, ShardMember, Skipped, captions_of
from flipscale.evaluation.shards import read_shards
from flipscale.third_party import import_open_clip

MEAN = STD = (0.5, 0.5, 0.5)


def read(samples, target: Any = None, **options):
    """All images, all targets, and the reader with what it skipped."""
    reader = Reader(samples, target or label_of(10), Decoding(**{"image_size": 16, **options}))
    batches = list(reader.batches())
    images = torch.cat([batch.inputs for batch in batches]) if batches else torch.empty(0, 3, 16, 16)
    return images, [target for batch in batches for target in batch.targets], reader


def labelled_folders(root: Path) -> Iterator[RawSample]:
    """The images of class folders, labelled by the places of their classes."""
    classes = open_class_folders(str(root))
    return classes.labelled({name: place for place, name in enumerate(classes.images)})


def stock_pixels(image: Image.Image, size: int) -> torch.Tensor:
    transform = import_open_clip().image_transform(size, is_train=False, mean=MEAN, std=STD)
    return transform(image)  # type: ignore[operator]


# --- pixels


@settings(max_examples=40, deadline=None)
@given(st.integers(8, 90), st.integers(8, 90), st.sampled_from([8, 15, 16, 32]), st.integers(0, 99))
def test_pixels_are_those_of_open_clips_transform(width, height, size, seed):
    image = Image.fromarray(noise(seed, width, height))
    view = torch.from_numpy(np.array(square_view(image, size))).permute(2, 0, 1)
    ours = (view.float() / 255 - 0.5) / 0.5
    assert torch.equal(ours, stock_pixels(image, size))


MODES = {"JPEG": ["RGB", "L", "CMYK"], "PNG": ["RGB", "L", "1", "RGBA", "LA", "P"], "WEBP": ["RGB", "RGBA"]}


@pytest.mark.parametrize(("kind", "mode"), [(kind, mode) for kind, modes in MODES.items() for mode in modes])
def test_every_mode_and_format_becomes_rgb(tmp_path, kind, mode):
    image = Image.fromarray(noise(0, 30, 20)).convert(mode)
    shard = write_tar(tmp_path / "a.tar", [("0." + kind.lower(), encoded(image, kind)), ("0.cls", b"3")])
    images, labels, reader = read(read_shards(str(shard)))
    assert (images.shape, images.dtype, labels) == ((1, 3, 16, 16), torch.uint8, [3])
    assert reader.skipped.count == 0
    decoded = Image.open(io.BytesIO(encoded(image, kind))).convert("RGB")
    assert torch.equal((images[0].float() / 255 - 0.5) / 0.5, stock_pixels(decoded, 16))


# --- shards


def test_shards_give_every_sample_once_and_in_order(tmp_path):
    for shard in range(3):
        members = []
        for n in range(7):
            members += [(f"d/{n:03}.cls", str(n).encode()), (f"d/{n:03}.png", encoded(noise(10 * shard + n)))]
        write_tar(tmp_path / f"{shard:02}.tar", members)
    pattern = str(tmp_path / "{00..02}.tar")
    images, labels, _ = read(read_shards(pattern), image_size=32, batch_size=4, workers=3)
    assert labels == list(range(7)) * 3
    want = [torch.from_numpy(noise(10 * shard + n)).permute(2, 0, 1) for shard in range(3) for n in range(7)]
    assert torch.equal(images, torch.stack(want))
    joined = f"{tmp_path}/02.tar::{tmp_path}/00.tar"
    again, _, _ = read(read_shards(joined), image_size=32)
    assert torch.equal(again, torch.cat([images[14:], images[:7]]))


def test_batches_have_the_asked_size(tmp_path):
    samples = [RawSample(str(n), encoded(noise(n)), b"0") for n in range(10)]
    batches = Reader(samples, label_of(1), Decoding(16, batch_size=4)).batches()
    assert [len(batch.inputs) for batch in batches] == [4, 4, 2]


@pytest.mark.parametrize("size", [2, 3, 5])
def test_several_readers_share_the_batches_of_one(size):
    """The bad samples shorten their own batches alone, and are counted once."""
    samples = [RawSample(str(n), b"" if n % 3 == 0 else encoded(noise(n)), b"0") for n in range(80)]

    def reader() -> Reader[int]:
        return Reader(samples, label_of(1), Decoding(16, batch_size=4))

    alone, readers = reader(), [reader() for _ in range(size)]
    expected = list(alone.batches())
    shared = [batch for rank, one in enumerate(readers) for batch in one.batches(rank, size)]
    shared.sort(key=lambda batch: batch.number)
    assert [batch.number for batch in shared] == [batch.number for batch in expected]
    for ours, theirs in zip(shared, expected, strict=True):
        assert torch.equal(ours.inputs, theirs.inputs)
    joined = Skipped.joined(one.skipped for one in readers)
    assert (joined.count, joined.examples) == (alone.skipped.count, alone.skipped.examples)
    assert (joined.count, len(joined.examples)) == (27, 20)


def test_an_image_that_goes_missing_after_the_scan_is_noticed(tmp_path):
    shard = write_tar(tmp_path / "a.tar", [("0.png", swatch("red", "PNG")), ("0.cls", b"0")])
    (sample,) = read_shards(str(shard))
    assert isinstance(sample.image, ShardMember)
    os.truncate(shard, 600)
    with pytest.raises(UserError, match=r"a\.tar cannot be read whole \(unexpected end of data\)"):
        sample.image.read_bytes()
    shard.unlink()
    with pytest.raises(UserError, match=r"a\.tar cannot be read whole"):
        sample.image.read_bytes()


def test_webdataset_reads_the_same_samples(tmp_path):
    """Keys with dots and folders, members it does not use, a sample without a label."""
    from webdataset.compat import WebDataset

    members = [
        ("a/1.png", swatch("red", "PNG")),
        ("a/1.txt", b"one"),
        ("a/1.seg.txt", b"not a caption"),
        ("b.c/1.png", swatch("green", "PNG")),
        ("b.c/1.txt", b"two"),
        ("b.c/1.json", b"{}"),
        ("2.webp", swatch("blue", "WEBP")),
        ("2.txt", b"three"),
    ]
    shard = write_tar(tmp_path / "a.tar", members)
    theirs = [
        (sample["__key__"], sample["txt"], sample.get("png") or sample.get("webp"))
        for sample in WebDataset(str(shard), shardshuffle=False)
    ]
    ours = [
        (s.name.removeprefix("a.tar/"), s.caption, s.image.read_bytes())
        for s in read_shards(str(shard))
        if isinstance(s.image, ShardMember)
    ]
    assert ours == theirs


def test_a_repeated_key_is_another_sample(tmp_path):
    """As the training index counts them."""
    members = [("1.png", swatch("red")), ("1.cls", b"0"), ("1.jpg", swatch("green")), ("1.cls", b"1")]
    images, labels, _ = read(read_shards(str(write_tar(tmp_path / "a.tar", members))))
    assert labels == [0, 1]
    assert images.float().mean(dim=(2, 3)).argmax(dim=1).tolist() == [0, 1]


def test_captions_are_one_a_line(tmp_path):
    members = [("0.jpg", swatch("red")), ("0.txt", "a red square\n\n  ein rötliches Quadrat \r\n".encode())]
    _, captions, _ = read(read_shards(str(write_tar(tmp_path / "a.tar", members))), captions_of)
    assert captions == [["a red square", "ein rötliches Quadrat"]]


# --- bad samples


def huge_png(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header promises width x height pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


BAD_IMAGES = {
    "empty": (b"", "missing or empty"),
    "text": (b"this is no image", "not an image"),
    "jpeg cut in half": (encoded(noise(0, 64, 64), "JPEG")[:2000], "cannot be decoded"),
    "png cut in half": (encoded(noise(0, 64, 64), "PNG")[:2000], "cannot be decoded"),
    "one pixel": (encoded(noise(0, 1, 1)), "has only 1 x 1 pixels"),
    "200 megapixels": (huge_png(20_000, 10_000), "more than 100000000"),
    "15 gigapixels": (huge_png(120_000, 120_000), "more than 100000000"),
    "elongated": (encoded(Image.new("1", (8 * 400_000, 8))), "too elongated"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_a_bad_image_is_counted_and_named_and_the_others_kept(tmp_path, name):
    data, reason = BAD_IMAGES[name]
    members = []
    for n in range(3):
        members += [(f"{n}.png", data if n == 1 else swatch("red", "PNG")), (f"{n}.cls", b"%d" % n)]
    images, labels, reader = read(read_shards(str(write_tar(tmp_path / "a.tar", members))))
    assert labels == [0, 2]
    assert len(images) == 2
    assert reader.skipped.count == 1
    assert reader.skipped.examples[0].startswith("a.tar/1: ")
    assert reason in reader.skipped.examples[0]


@pytest.mark.parametrize(
    ("members", "target", "reason"),
    [
        ([("1.png", swatch("red")), ("1.txt", b"x")], label_of(3), "the label is missing"),
        ([("1.cls", b"1")], label_of(3), "the image is missing"),
        ([("1.png", swatch("red"))], captions_of, "the caption is missing"),
        ([("1.png", swatch("red")), ("1.txt", b" \n ")], captions_of, "the caption is blank"),
        ([("1.png", swatch("red")), ("1.txt", b"\xff\xfe")], captions_of, "not UTF-8"),
    ],
)
def test_a_sample_that_lacks_something_is_counted(tmp_path, members, target, reason):
    shard = write_tar(
        tmp_path / "a.tar", [*members, ("2.png", swatch("red")), ("2.cls", b"2"), ("2.txt", b"x")]
    )
    images, _, reader = read(read_shards(str(shard)), target)
    assert len(images) == 1
    assert reader.skipped.count == 1
    assert reason in reader.skipped.examples[0]


def test_many_skips_are_all_counted_and_twenty_named():
    samples = [RawSample(str(n), b"", b"0") for n in range(50)]
    images, _, reader = read(samples, batch_size=3)
    assert len(images) == 0
    assert reader.skipped.count == 50
    assert [example.split(":")[0] for example in reader.skipped.examples] == [str(n) for n in range(20)]


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (b"10", r"label of a.tar/7 is 10, but there are 10 class names \(0 to 9\)"),
        (b"-1", "is '-1'; a .cls holds a class number"),
        (b"cat", "is 'cat'"),
        (b"", "is ''"),
        (b"9" * 5000, "a .cls holds a class number"),
        (b"\xff", "a .cls holds a class number"),
        ("²".encode(), "a .cls holds a class number"),
    ],
)
def test_a_wrong_label_stops_the_evaluation(tmp_path, label, message):
    shard = write_tar(tmp_path / "a.tar", [("7.png", swatch("red")), ("7.cls", label)])
    with pytest.raises(UserError, match=message):
        read(read_shards(str(shard)))


# --- folders


def test_a_folders_classes_are_its_sorted_sub_folders(tmp_path):
    colours = {"b_class": "red", "a_class": "green", "c_class": "blue"}
    for name, colour in colours.items():
        (tmp_path / name / "deeper").mkdir(parents=True)
        (tmp_path / name / "1.jpg").write_bytes(swatch(colour))
        (tmp_path / name / "deeper" / "0.JPEG").write_bytes(swatch(colour))
        (tmp_path / name / ".DS_Store").write_bytes(b"x")
    (tmp_path / "c_class" / "notes.txt").write_text("no image")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "README.txt").write_text("no class")
    folders = class_folders(tmp_path)
    assert [folder.name for folder in folders] == ["a_class", "b_class", "c_class"]
    images, labels, reader = read(labelled_folders(tmp_path))
    assert labels == [0, 0, 1, 1, 2, 2]
    assert images.float().mean(dim=(2, 3)).argmax(dim=1).tolist() == [1, 1, 0, 0, 2, 2]
    assert reader.skipped.examples == ["c_class/notes.txt: not an image (UnidentifiedImageError)"]


def test_torchvision_gives_a_folder_the_same_labels(tmp_path):
    for name in ("b", "a", "C", "10", "9"):
        (tmp_path / name).mkdir()
        for number in range(40):
            (tmp_path / name / f"{number}.png").write_bytes(swatch("red", "PNG"))
    import_open_clip()
    from torchvision.datasets import ImageFolder

    theirs = [(str(Path(path).relative_to(tmp_path)), label) for path, label in ImageFolder(tmp_path).samples]
    ours = [(s.name, int(s.label or b"")) for s in labelled_folders(tmp_path)]
    assert ours == theirs


def test_a_file_that_cannot_be_read_is_counted(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "a" / "here.jpg").write_bytes(swatch("red"))
    _, labels, reader = read(labelled_folders(tmp_path))
    assert labels == [0]
    assert reader.skipped.examples == ["a/gone.jpg: the image cannot be read (No such file or directory)"]


def test_a_folder_without_classes_is_one_clear_sentence(tmp_path):
    (tmp_path / "1.jpg").write_bytes(swatch("red"))
    with pytest.raises(UserError, match="has no sub-folders; it needs one for each class"):
        class_folders(tmp_path)
