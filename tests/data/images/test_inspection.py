"""The verdict on an image's bytes: what is refused before a library sees it, and why."""

from __future__ import annotations

import io
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image
from support.lossless_jpeg import lossless_jpeg
from support.mutations import image_seeds, with_checksums
from support.shards import encoded, picture, vast_png

from flipscale.data.images import inspection, jpeg, png
from flipscale.data.images.inspection import inspect
from flipscale.data.images.jpeg import MOST_SCANS
from flipscale.data.quarantine import BadSample
from flipscale.data.samples.augment import View
from flipscale.data.samples.decode import open_image, render, whole
from flipscale.errors import UserError

LIMIT = 10**8  # pixels


def refusal(data: bytes, limit: int = LIMIT) -> str:
    with pytest.raises(BadSample) as refused:
        inspect(data, limit)
    return str(refused.value)


REFUSED = {"jpeg lossless", "jpeg lossless grey", "tiff jpeg", "tiff float"}


@pytest.mark.parametrize("kind", [kind for kind in image_seeds() if kind not in REFUSED])
def test_every_format_is_decoded_as_pillow_does(kind):
    """Pillow's own choice of a decoder is the judge; of an animation, it shows the first picture."""
    data = image_seeds()[kind]
    header = inspect(data, LIMIT)
    assert (header.width, header.height) == (67, 50)
    pixels = whole(open_image(data, LIMIT))
    assert pixels.shape == (50, 67, 3)
    if kind != "png deep grey":  # which Pillow shows white
        judge = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
        assert np.abs(pixels - judge).max() <= (3 if kind.startswith(("jpeg", "mpo")) else 0)


def test_an_avif_may_call_itself_by_the_name_of_its_container():
    data = image_seeds()["avif"]
    assert data[8:12] == b"avif"
    assert inspect(data[:8] + b"mif1" + data[12:], LIMIT).kind == "avif"


def test_a_missing_decoder_ends_the_run(monkeypatch):
    """Else the order would depend on the machine."""
    monkeypatch.setattr(inspection, "can_decode", lambda kind: kind != "avif")
    with pytest.raises(UserError, match="the format avif, for which the installed Pillow was built without"):
        open_image(image_seeds()["avif"], LIMIT)


def test_only_a_tiff_is_turned_as_it_says():
    """Its orientation is a part of the format; that of EXIF is metadata, which is not read."""
    photo, turned = picture(1, 67, 50), Image.Exif()
    turned[0x0112] = 6
    for kind, size in (("JPEG", (67, 50)), ("PNG", (67, 50)), ("WEBP", (67, 50)), ("TIFF", (50, 67))):
        file = io.BytesIO()
        photo.save(file, kind, exif=turned)
        image = open_image(file.getvalue(), LIMIT)
        assert image.size == size, kind
        assert whole(image).shape == (size[1], size[0], 3)


# --- lossless JPEG


def test_the_lossless_writer_writes_what_libjpeg_reads(tmp_path):
    """The file is whole, so that the refusal is for its kind. Another process decodes it at full size."""
    pixels = np.asarray(picture(1, 33, 25))
    (tmp_path / "a.jpg").write_bytes(lossless_jpeg(pixels))
    code = (
        "import sys, simplejpeg, numpy; data = open(sys.argv[1], 'rb').read(); "
        "numpy.save(sys.argv[2], simplejpeg.decode_jpeg(data, 'RGB'))"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "a.jpg", tmp_path / "a.npy"], check=True)
    assert np.array_equal(np.load(tmp_path / "a.npy"), pixels)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 64, 512])
def test_a_lossless_jpeg_is_refused_at_every_size(channels, size):
    """A scaled decode of three components wrote the whole picture into the buffer of the small one."""
    data = lossless_jpeg(np.asarray(picture(1, 160, 120))[..., :channels])
    with pytest.raises(BadSample, match="lossless or hierarchical JPEG"):
        render(open_image(data, LIMIT), View((0, 0, 160, 120), False), size, "bicubic")


@pytest.mark.parametrize("code", [0xC3, 0xC5, 0xC6, 0xC7, 0xCB, 0xCD, 0xCE, 0xCF, 0xDE])
def test_every_lossless_and_hierarchical_process_is_refused(code):
    data = bytearray(encoded(picture(1)))
    data[data.index(b"\xff\xc0") + 1] = code
    assert refusal(bytes(data)) == "the image is a lossless or hierarchical JPEG, which is not supported"


def test_a_lossless_frame_cannot_hide_behind_another_or_behind_padding():
    data = encoded(picture(1))
    start = data.index(b"\xff\xc0")
    lossless = b"\xff\xff\xff\xc3" + data[start + 2 : start + 19]
    for disguised in (
        data[:start] + lossless + data[start:],
        data[: start + 19] + lossless + data[start + 19 :],
        data[:start] + b"junk\xff\0" + lossless + data[start:],
    ):
        assert "lossless" in refusal(disguised)


# --- other JPEGs


def test_other_precisions_and_channels_are_named():
    data = bytearray(encoded(picture(1)))
    frame = data.index(b"\xff\xc0")
    data[frame + 4] = 12
    assert refusal(bytes(data)) == "the JPEG has 12 bits per channel, and only 8 are supported"
    data[frame + 4], data[frame + 9] = 8, 2
    assert refusal(bytes(data)) == "the JPEG has a damaged frame header"


def progressive(side: int, scans: int) -> bytes:
    """Return a JPEG that repeats the last scan of a progressive one."""
    file = io.BytesIO()
    picture(1, side, side).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * (scans - data.count(b"\xff\xda") + 1) + data[-2:]


def test_scans_are_counted_and_limited():
    assert inspect(progressive(64, MOST_SCANS), LIMIT).scans == MOST_SCANS
    assert refusal(progressive(64, MOST_SCANS + 1)) == f"the JPEG has more than {MOST_SCANS} scans"
    assert "scans" in refusal(progressive(64, 2000))


def test_scans_of_embedded_pictures_do_not_count():
    """A preview is in the metadata, and other pictures follow the end of the image."""
    whole_file = progressive(64, 10)
    preview = progressive(64, 60) * 2
    for start in range(0, len(preview), 60_000):
        part = preview[start : start + 60_000]
        whole_file = whole_file[:2] + b"\xff\xe1" + (len(part) + 2).to_bytes(2, "big") + part + whole_file[2:]
    assert inspect(whole_file, LIMIT).scans == 10
    assert inspect(whole_file + preview, LIMIT).scans == 10


def test_many_scans_of_a_large_image_are_refused():
    data = bytearray(progressive(64, 50))
    frame = data.index(b"\xff\xc2")
    data[frame + 5 : frame + 9] = b"\x13\x88\x13\x88"  # 5000 x 5000
    assert refusal(bytes(data)) == (
        "the image has 5000 x 5000 pixels in 50 scans, which take too long to decode"
    )


def test_floods_of_segments_and_chunks_are_refused():
    """Pillow takes minutes for some."""
    data = encoded(picture(1))
    flood = data[:2] + b"\xff\xe5\0\2" * 20_000 + data[2:]
    png_file = encoded(picture(1), "PNG")
    text = with_checksums(png_file[:8] + b"\0\0\0\0tEXt\0\0\0\0")[8:]
    png_flood = png_file[:33] + text * 20_000 + png_file[33:]
    assert refusal(flood) == "the JPEG has more than 10000 segments"
    assert refusal(png_flood) == "the PNG has too many chunks for its size"


# --- PNG


def test_a_palette_is_needed_where_pixels_are_numbers_of_colours():
    """Pillow raises an AssertionError."""
    data = encoded(picture(1).convert("P"), "PNG")
    start = data.index(b"PLTE") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    assert refusal(data[:start] + data[end:]) == "the PNG needs a palette and has none"


def test_damage_in_metadata_does_not_matter():
    """What libraries read of it differs between their versions; the pixels are the same."""
    clean = encoded(picture(1), "PNG")
    for name in (b"iCCP", b"tEXt", b"eXIf", b"pHYs", b"zTXt", b"gAMA", b"acTL"):
        chunk = b"\0\0\0\3" + name + b"\0\xff\0" + bytes(4)
        damaged = clean[:33] + chunk + clean[33:]
        assert np.array_equal(whole(open_image(damaged, LIMIT)), whole(open_image(clean, LIMIT)))

    photo = encoded(picture(1))
    for content in (b"Exif\0\0MM\0*", b"MPF\0II*\0", b"Photoshop 3.0\x008BIM", b"Adobe", b"JFIF\0"):
        for code in range(0xE0, 0xF0):
            segment = bytes([0xFF, code]) + (len(content) + 2).to_bytes(2, "big") + content
            damaged = photo[:2] + segment + photo[2:]
            assert np.array_equal(whole(open_image(damaged, LIMIT)), whole(open_image(photo, LIMIT)))


def test_only_pixels_reach_the_library():
    seeds = image_seeds()
    assert b"Exif" in seeds["jpeg exif"]
    assert b"Exif" not in jpeg.pixels_only(seeds["jpeg exif"])
    assert b"comment" not in jpeg.pixels_only(seeds["jpeg exif"])
    assert b"Adobe" in jpeg.pixels_only(seeds["jpeg cmyk"])  # its colours are inverted
    assert b"acTL" not in png.pixels_only(seeds["apng"])


def test_a_png_that_is_cut_anywhere_is_judged_by_its_pixels():
    data = encoded(picture(1), "PNG")
    for end in range(8, len(data)):
        cut = data[:end]
        try:
            Image.open(io.BytesIO(cut)).load()
            good = True
        except (OSError, SyntaxError):
            good = False
        try:
            whole(open_image(cut, LIMIT))
        except BadSample:
            assert not good, end
        else:
            assert good, end


# --- sizes


def test_decoders_that_need_more_memory_get_fewer_pixels():
    """A WebP of a few bytes took 2.8 GB."""
    side = 9_000
    canvas = (side - 1).to_bytes(3, "little")
    frame = b"VP8X\x0a\0\0\0\0\0\0\0" + canvas * 2
    data = b"RIFF" + (len(frame) + 4).to_bytes(4, "little") + b"WEBP" + frame
    assert refusal(data) == "the image has 9000 x 9000 pixels, more than 50000000"
    assert open_image(vast_png(side, side), LIMIT).size == (side, side)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the image is missing or empty"),
        (b"<!DOCTYPE html><p>404", "not an image that can be read, but HTML"),
        (b'{"error": 404}', "not an image that can be read, but JSON"),
        (b"<?xml version='1.0'?><svg/>", "not an image that can be read, but SVG"),
        (b"\0\0\0\x20ftypheic" + bytes(20), "not an image that can be read, but HEIC"),
        (b"\xff\x0a" + bytes(20), "not an image that can be read, but JPEG XL"),
        (b"%PDF-1.7", "not an image that can be read, but PDF"),
        (zlib.compress(b"x"), "not an image"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1heicmiaf" + bytes(20), "not an image that can be read, but HEIC"),
    ],
)
def test_what_is_not_read_is_called_by_its_name(data, reason):
    assert refusal(data) == reason
