"""Reading by position: the right pixels, every damage replaced and recorded, every read error handled."""

from __future__ import annotations

import io
import os
import resource
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.readers import hasty, open_reader
from support.replaced_time import replace_time
from support.shards import BAD, Member, caption, encoded, good, picture, vast_png, write_shards, write_tar

from flipscale.config import Augmentation
from flipscale.data.order.lanes import digest, uniforms
from flipscale.data.order.mixture import Mixture
from flipscale.data.quarantine import BadSample
from flipscale.data.samples import decode
from flipscale.data.samples.augment import DRAWS, View, random_views
from flipscale.data.samples.decode import open_image, render
from flipscale.data.shards import storage
from flipscale.data.shards.storage import DataReadError
from flipscale.errors import StoppedEarly, UserError
from flipscale.order_digest import OrderDigest


def positions(start: int, stop: int) -> np.ndarray:
    return np.arange(start, stop, dtype=np.int64)


def members(path: Path) -> list[Member]:
    with tarfile.open(path) as tar:
        files = ((member.name, tar.extractfile(member)) for member in tar)
        return [(name, file.read()) for name, file in files if file is not None]


def reference_pixels(data: bytes, view: View, size: int, interpolation: Image.Resampling) -> np.ndarray:
    image = Image.open(io.BytesIO(data)).convert("RGB").resize((size, size), interpolation, box=view.box)
    if view.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(image).transpose(2, 0, 1)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_pixels_and_tokens_are_those_of_the_samples_at_the_positions(
    tmp_path, tokenizer, monkeypatch, interpolation
):
    monkeypatch.setattr(decode, "cykooz_resizer", None)  # Pillow's resizing, bit by bit
    pattern = write_shards(tmp_path, [7, 5, 9])
    augmentation = Augmentation(interpolation=interpolation)
    reader, order = open_reader(pattern, 3, window=4, seed=5, size=20, augmentation=augmentation)
    wanted = positions(0, 60)
    chunk = reader.read(wanted)
    tars = [members(tmp_path / f"{shard:05d}.tar") for shard in range(3)]
    found = order.locate(wanted)
    for i, (shard, ordinal) in enumerate(zip(*found, strict=True)):
        numbers = uniforms(5, wanted[i : i + 1], DRAWS)
        (view,) = random_views(np.array([40]), np.array([30]), numbers, augmentation)
        kind = getattr(Image.Resampling, interpolation.upper())
        expected = reference_pixels(tars[shard][2 * ordinal][1], view, 20, kind)
        assert np.array_equal(chunk.images[i].numpy(), expected)
        text = tars[shard][2 * ordinal + 1][1].decode()
        assert chunk.tokens[i].tolist() == tokenizer([text])[0].tolist()
    assert chunk.images.dtype.is_signed is False
    assert chunk.images.shape == (60, 3, 20, 20)
    assert chunk.positions.tolist() == wanted.tolist()
    assert chunk.digest == digest(wanted, *found)
    assert chunk.bad == []


def test_a_position_looks_the_same_however_it_is_reached(tmp_path):
    pattern = write_shards(tmp_path, [7, 5, 9], {(1, 2): "half a jpeg", (2, 0): "no image"})
    together = open_reader(pattern, 3)[0].read(positions(0, 63))
    backwards = positions(0, 63)[::-1].copy()
    single = open_reader(pattern, 3)[0]
    for position in backwards:
        chunk = single.read(np.array([position]))
        assert chunk.images[0].equal(together.images[position])
        assert chunk.tokens[0].equal(together.tokens[position])
    # Another epoch and another seed show other views.
    assert not open_reader(pattern, 3, seed=1)[0].read(positions(0, 63)).images.equal(together.images)


def test_flips_are_drawn_for_half_of_the_positions(tmp_path):
    pattern = write_shards(tmp_path, [8])
    flipped = open_reader(pattern, augmentation=Augmentation(flip=True))[0].read(positions(0, 64)).images
    straight = open_reader(pattern, augmentation=Augmentation(flip=False))[0].read(positions(0, 64)).images
    mirrored = [a.equal(b.flip(-1)) for a, b in zip(flipped, straight, strict=True)]
    same = [a.equal(b) for a, b in zip(flipped, straight, strict=True)]
    assert all(a != b for a, b in zip(mirrored, same, strict=True))
    assert 16 <= sum(mirrored) <= 48


@pytest.mark.parametrize("kind", BAD)
def test_every_damage_is_replaced_and_recorded(tmp_path, kind):
    """One of three samples is bad: the next good one of the window takes its place."""
    pattern = write_shards(tmp_path, [3], {(0, 1): kind})
    reader, order = open_reader(pattern, window=3)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    chunk = reader.read(positions(0, 9))
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert used < 100_000, "kilobytes: the pixels of a huge image were decoded"
    expected = next_good(order, 9, {(0, 1)})
    assert (0, 1) not in expected
    assert chunk.digest == digest(positions(0, 9), *np.array(expected).T)
    (record,) = chunk.bad
    assert (record.shard, record.ordinal, record.key) == (0, 1, "000000001")
    assert record.path == str(tmp_path / "00000.tar")
    assert BAD[kind][2] in record.reason
    assert "\n" not in record.reason


def next_good(order: Mixture, count: int, bad: set[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the samples that the first `count` positions must give, position by position."""
    shown: list[tuple[int, int]] = []
    for position in range(count):
        here = np.array([position], dtype=np.int64)
        candidates = (order.locate(here, attempt) for attempt in range(order.window_size(position)))
        pairs = ((int(found.shards[0]), int(found.ordinals[0])) for found in candidates)
        shown.append(next(pair for pair in pairs if pair not in bad))
    return shown


def test_neighbouring_damage_is_recorded_once(tmp_path, tokenizer):
    kinds = list(BAD)
    bad_at = {(n % 3, n // 3 * 2): kind for n, kind in enumerate(kinds)}
    reader, order = open_reader(write_shards(tmp_path, [12, 11, 12], bad_at), 2, window=6)
    expected = next_good(order, 140, set(bad_at))
    chunks = [reader.read(positions(start, start + 20)) for start in range(0, 140, 20)]
    total = sum((chunk.digest for chunk in chunks), OrderDigest())
    assert total == digest(positions(0, 140), *np.array(expected).T)
    records = [record for chunk in chunks for record in chunk.bad]
    assert sorted((record.shard, record.ordinal) for record in records) == sorted(bad_at)
    shown = [caption(shard * 10_000 + ordinal) for shard, ordinal in expected]
    assert tokenizer(shown).tolist() == [row for chunk in chunks for row in chunk.tokens.tolist()]


def test_window_without_a_usable_sample_is_refused(tmp_path):
    bad_at = {(0, ordinal): "half a jpeg" for ordinal in range(4)}
    reader, _ = open_reader(write_shards(tmp_path, [4, 4], bad_at), 2, window=4)
    assert len(reader.read(positions(1, 2)).bad) == 0  # lane 1 is whole
    for _ in range(2):  # also when all of them are known already
        with pytest.raises(UserError, match="all 4 samples of a window in") as refusal:
            reader.read(positions(0, 1))
        assert str(tmp_path / "00000.tar") in str(refusal.value)
        assert "the image cannot be decoded" in str(refusal.value)
        assert "\n" not in str(refusal.value)


def modes() -> dict[str, bytes]:
    """Return one image in every mode that web images have."""
    image = picture(3)
    palette = encoded(image.convert("P"), "PNG")
    transparent = Image.merge("RGBA", (*image.split(), picture(4).convert("L")))
    return {
        "grey jpeg": encoded(image.convert("L")),
        "cmyk jpeg": encoded(image.convert("CMYK")),
        "palette png": palette,
        "one bit png": encoded(image.convert("1"), "PNG"),
        "grey and alpha png": encoded(transparent.convert("LA"), "PNG"),
        "alpha png": encoded(transparent, "PNG"),
        "alpha webp": encoded(transparent, "WEBP"),
    }


@pytest.mark.parametrize("mode", modes())
def test_every_mode_becomes_rgb(monkeypatch, mode):
    monkeypatch.setattr(decode, "cykooz_resizer", None)  # Pillow's resizing, bit by bit
    data = modes()[mode]
    view = View((2, 3, 38, 27), True)
    pixels = render(open_image(data, 10_000), view, 16, "bicubic")
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, reference_pixels(data, view, 16, Image.Resampling.BICUBIC))
    assert pixels.std() > 10


def test_sixteen_bit_grey_is_scaled_and_not_cut_off():
    ramp = (np.arange(256, dtype=np.uint16).reshape(16, 16)) * 257
    image = open_image(encoded(Image.fromarray(ramp), "PNG"), 10_000)
    pixels = render(image, View((0, 0, 16, 16), False), 16, "bicubic")
    assert np.array_equal(
        pixels, np.broadcast_to(np.arange(256, dtype=np.uint8).reshape(16, 16), (3, 16, 16))
    )


def test_only_the_limit_of_the_caller_holds(monkeypatch):
    """Pillow's own limit is neither needed nor changed."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 12_345)
    assert open_image(vast_png(20_000, 10_000), 10**9).size == (20_000, 10_000)
    with pytest.raises(BadSample, match="more than 199999999"):
        open_image(vast_png(20_000, 10_000), 199_999_999)
    assert Image.MAX_IMAGE_PIXELS == 12_345


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_no_damage_gets_past_the_decoder(kind):
    """Each of hundreds of damaged files is either decoded or refused."""
    whole = encoded(picture(0), kind)
    random = np.random.default_rng(0)
    reasons: list[str] = []
    for number in range(300):
        data = bytearray(whole[: random.integers(1, len(whole))] if number % 5 == 0 else whole)
        for _ in range(number % 4):
            data[random.integers(len(data) if number % 2 else min(len(data), 150))] = random.integers(256)
        try:
            pixels = render(open_image(bytes(data), 10**6), View((0, 0, 8, 8), False), 8, "bicubic")
        except BadSample as error:
            reasons.append(str(error))
        else:
            assert pixels.shape == (3, 8, 8)
    assert 60 <= len(reasons) < 300
    assert "\n" not in "".join(reasons)


def test_shard_that_became_shorter_is_refused(tmp_path):
    reader, _ = open_reader(write_shards(tmp_path, [6]))
    os.truncate(tmp_path / "00000.tar", 3000)
    with pytest.raises(UserError, match=r"00000\.tar became shorter since the index was made"):
        reader.read(positions(0, 6))


def test_read_errors_end_the_segment_after_retries(tmp_path):
    reader, _ = open_reader(write_shards(tmp_path, [6]), storage=hasty())
    (tmp_path / "00000.tar").rename(tmp_path / "away.tar")
    began = time.monotonic()
    with pytest.raises(DataReadError, match=r"00000\.tar cannot be read .* after 2 retries") as stop:
        reader.read(positions(0, 6))
    assert time.monotonic() - began >= 0.03
    assert isinstance(stop.value, StoppedEarly)  # exit 75: the same command resumes
    (tmp_path / "away.tar").rename(tmp_path / "00000.tar")
    assert reader.read(positions(0, 6)).bad == []


def test_a_read_error_that_passes_changes_nothing(tmp_path, monkeypatch):
    """The file is back during the second pause."""
    pattern = write_shards(tmp_path, [6])
    expected = open_reader(pattern)[0].read(positions(0, 6))
    reader, _ = open_reader(pattern)
    away = (tmp_path / "00000.tar").rename(tmp_path / "away.tar")
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            away.rename(tmp_path / "00000.tar")

    replace_time(monkeypatch, storage, sleep=pause)
    chunk = reader.read(positions(0, 6))
    assert pauses == [0.1, 0.5]
    assert chunk.images.equal(expected.images)
    assert chunk.bad == []


def test_a_file_handle_that_went_stale_is_opened_again(tmp_path):
    pattern = write_shards(tmp_path, [6])
    expected = open_reader(pattern)[0].read(positions(0, 6))
    reader, _ = open_reader(pattern, storage=hasty())
    reader.read(positions(0, 1))
    handles = {os.path.realpath(f"/proc/self/fd/{n}"): int(n) for n in os.listdir("/proc/self/fd")}
    directory = os.open(tmp_path, os.O_RDONLY)
    os.dup2(directory, handles[str(tmp_path / "00000.tar")])  # reading from it fails from now on
    os.close(directory)
    assert reader.read(positions(0, 6)).images.equal(expected.images)


def test_only_so_many_shards_stay_open(tmp_path):
    reader, _ = open_reader(write_shards(tmp_path, [1] * 80), window=100)
    before = len(os.listdir("/proc/self/fd"))
    reader.read(positions(0, 160))
    assert len(os.listdir("/proc/self/fd")) - before <= 65


def test_members_in_directories_and_with_other_extensions_are_read(tmp_path, tokenizer):
    path = write_tar(
        tmp_path / "0.tar",
        [
            ("d/e.f/0.WEBP", encoded(picture(1), "WEBP")),
            ("d/e.f/0.json", b"{}"),
            ("d/e.f/0.txt", b"a blue hat"),
            *good(2, "d/1"),
        ],
    )
    chunk = open_reader(str(path))[0].read(positions(0, 2))
    assert chunk.bad == []
    assert sorted(chunk.tokens.tolist()) == sorted(tokenizer(["a blue hat", caption(2)]).tolist())
