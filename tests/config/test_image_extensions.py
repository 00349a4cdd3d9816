"""`data.images`: which members of a tar are images."""

from __future__ import annotations

import pytest

from flipscale.config import IMAGE_EXTENSIONS, parse_image_extensions


def test_extensions_are_read_without_their_case():
    assert parse_image_extensions(["JPG", "Input.Jpg"]) == ("jpg", "input.jpg")
    assert parse_image_extensions(IMAGE_EXTENSIONS) == IMAGE_EXTENSIONS


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ([], "0 extensions of images; give 1 to 32"),
        ([f"x{n}" for n in range(33)], "33 extensions of images; give 1 to 32"),
        ([".jpg"], r"'\.jpg' is not an extension; write it without its first dot"),
        (["a..jpg"], "is not an extension"),
        (["a/jpg"], "is not an extension"),
        (["TXT"], "'TXT' is the extension of other members"),
        (["json"], "'json' is the extension of other members"),
        (["jpg", "png", "JPG"], "names jpg twice"),
    ],
)
def test_what_no_image_can_have_is_refused(names, reason):
    with pytest.raises(ValueError, match=reason):
        parse_image_extensions(names)
