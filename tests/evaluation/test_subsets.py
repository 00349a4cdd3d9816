"""Subsets of a list of classes: numbers from a file, or timm's tables by name."""

import pytest

from flipscale.errors import UserError
from flipscale.evaluation.subsets import load_subset


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1\nx\n", "'x' is not a class number"),
        ("1000\n", "'1000' is not"),
        ("1 1", "twice"),
        ("", "none at all"),
    ],
)
def test_unusable_subset_file_is_reported(tmp_path, content, message):
    (tmp_path / "subset.txt").write_text(content)
    with pytest.raises(UserError, match=message):
        load_subset(str(tmp_path / "subset.txt"), 1000)


def test_unknown_subset_lists_the_known_ones():
    with pytest.raises(UserError, match=r"no file imagenet_b; .*imagenet_a or imagenet_r"):
        load_subset("imagenet_b", 1000)
