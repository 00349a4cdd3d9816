"""Decoded evaluation sets: OpenCLIP's pixels, every sample in order or counted as skipped, no half sets."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.evaluation_samples import encoded, noise, read_set, swatch, write_tar
from support.mutations import image_seeds

from flipscale.data.quarantine import BadSample
from flipscale.data.samples.decode import open_image, whole
from flipscale.errors import UserError
from flipscale.evaluation.decoding import Decoding, Reader, square_view
from flipscale.evaluation.labels import label_of
from flipscale.evaluation.samples import RawSample, ShardMember, Skipped, captions_of
from flipscale.evaluation.shards import read_shards
from flipscale.third_party import import_open_clip

MEAN = STD = (0.5, 0.5, 0.5)


def stock_pixels(image: Image.Image, size: int) -> torch.Tensor:
    transform = import_open_clip().image_transform(size, is_train=False, mean=MEAN, std=STD)
    return transform(image)


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
    images, labels, reader = read_set(read_shards(str(shard)))
    assert (images.shape, images.dtype, labels) == ((1, 3, 16, 16), torch.uint8, [3])
    assert reader.skipped.count == 0
    decoded = Image.open(io.BytesIO(encoded(image, kind))).convert("RGB")
    assert torch.equal((images[0].float() / 255 - 0.5) / 0.5, stock_pixels(decoded, 16))


def test_sixteen_bit_grey_is_scaled_as_in_training():
    """Pillow's own conversion makes it white."""
    ramp = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    images, _, _ = read_set([RawSample("0", encoded(Image.fromarray(ramp)), b"3")])
    assert torch.equal(images[0], torch.arange(256, dtype=torch.uint8).reshape(16, 16).expand(3, 16, 16))


def test_evaluation_uses_the_images_that_training_uses():
    for kind, data in image_seeds().items():
        try:
            expected = whole(open_image(data, 10**6))
        except BadSample:
            expected = None
        images, _, reader = read_set([RawSample(kind, data, b"3")], image_size=50)
        assert len(images) == (expected is not None)
        assert reader.skipped.count == (expected is None)
        if expected is not None:
            assert np.array_equal(images[0].permute(1, 2, 0).numpy(), expected[:, 8:58])


# --- shards


def test_shards_give_every_sample_once_and_in_order(tmp_path):
    for shard in range(3):
        members = []
        for n in range(7):
            members += [(f"d/{n:03}.cls", str(n).encode()), (f"d/{n:03}.png", encoded(noise(10 * shard + n)))]
        write_tar(tmp_path / f"{shard:02}.tar", members)
    pattern = str(tmp_path / "{00..02}.tar")
    images, labels, _ = read_set(read_shards(pattern), image_size=32, batch_size=4, workers=3)
    assert labels == list(range(7)) * 3
    want = [torch.from_numpy(noise(10 * shard + n)).permute(2, 0, 1) for shard in range(3) for n in range(7)]
    assert torch.equal(images, torch.stack(want))
    joined = f"{tmp_path}/02.tar::{tmp_path}/00.tar"
    again, _, _ = read_set(read_shards(joined), image_size=32)
    assert torch.equal(again, torch.cat([images[14:], images[:7]]))


def test_batches_have_the_configured_size(tmp_path):
    samples = [RawSample(str(n), encoded(noise(n)), b"0") for n in range(10)]
    batches = Reader(samples, label_of(1), Decoding(16, batch_size=4)).batches()
    assert [len(batch.inputs) for batch in batches] == [4, 4, 2]


@pytest.mark.parametrize("size", [2, 3, 5])
def test_several_readers_share_the_batches_of_one(size):
    """Bad samples shorten only their own batches, and are counted once."""
    samples = [RawSample(str(n), b"" if n % 3 == 0 else encoded(noise(n)), b"0") for n in range(80)]

    def reader() -> Reader[int]:
        return Reader(samples, label_of(1), Decoding(16, batch_size=4))

    single = reader()
    readers = [reader() for _ in range(size)]
    expected = list(single.batches())
    shared = [batch for rank, one in enumerate(readers) for batch in one.batches(rank, size)]
    shared.sort(key=lambda batch: batch.number)
    assert [batch.number for batch in shared] == [batch.number for batch in expected]
    for ours, theirs in zip(shared, expected, strict=True):
        assert torch.equal(ours.inputs, theirs.inputs)
    joined = Skipped.joined(one.skipped for one in readers)
    assert (joined.count, joined.examples) == (single.skipped.count, single.skipped.examples)
    assert (joined.count, len(joined.examples)) == (27, 20)


def test_image_that_disappears_after_the_listing_is_reported(tmp_path):
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
    """The shard has keys with dots and folders, members that are not used, and a sample without a label."""
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


def test_repeated_key_starts_another_sample(tmp_path):
    """The training index counts samples in the same way."""
    members = [("1.png", swatch("red")), ("1.cls", b"0"), ("1.jpg", swatch("green")), ("1.cls", b"1")]
    images, labels, _ = read_set(read_shards(str(write_tar(tmp_path / "a.tar", members))))
    assert labels == [0, 1]
    assert images.float().mean(dim=(2, 3)).argmax(dim=1).tolist() == [0, 1]


def test_captions_are_one_per_line(tmp_path):
    members = [("0.jpg", swatch("red")), ("0.txt", "a red square\n\n  ein rötliches Quadrat \r\n".encode())]
    _, captions, _ = read_set(read_shards(str(write_tar(tmp_path / "a.tar", members))), captions_of)
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
    "text": (b"this is not an image", "not an image"),
    "jpeg cut in half": (encoded(noise(0, 64, 64), "JPEG")[:2000], "cannot be decoded"),
    "png cut in half": (encoded(noise(0, 64, 64), "PNG")[:2000], "cannot be decoded"),
    "one pixel": (encoded(noise(0, 1, 1)), "has only 1 x 1 pixels"),
    "200 megapixels": (huge_png(20_000, 10_000), "more than 100000000"),
    "15 gigapixels": (huge_png(120_000, 120_000), "more than 100000000"),
    "elongated": (encoded(Image.new("1", (8 * 400_000, 8))), "too elongated"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_bad_image_is_counted_and_named_and_the_others_are_kept(tmp_path, name):
    data, reason = BAD_IMAGES[name]
    members = []
    for n in range(3):
        members += [(f"{n}.png", data if n == 1 else swatch("red", "PNG")), (f"{n}.cls", b"%d" % n)]
    images, labels, reader = read_set(read_shards(str(write_tar(tmp_path / "a.tar", members))))
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
def test_incomplete_sample_is_counted(tmp_path, members, target, reason):
    shard = write_tar(
        tmp_path / "a.tar", [*members, ("2.png", swatch("red")), ("2.cls", b"2"), ("2.txt", b"x")]
    )
    images, _, reader = read_set(read_shards(str(shard)), target)
    assert len(images) == 1
    assert reader.skipped.count == 1
    assert reason in reader.skipped.examples[0]


def test_all_skipped_samples_are_counted_and_twenty_are_named():
    samples = [RawSample(str(n), b"", b"0") for n in range(50)]
    images, _, reader = read_set(samples, batch_size=3)
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
def test_wrong_label_stops_the_evaluation(tmp_path, label, message):
    shard = write_tar(tmp_path / "a.tar", [("7.png", swatch("red")), ("7.cls", label)])
    with pytest.raises(UserError, match=message):
        read_set(read_shards(str(shard)))
