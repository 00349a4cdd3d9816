"""Labelled sets: their classes, and the sets that are refused."""

import pytest
from support.classifier_samples import labelled_folder, labelled_tar, picture
from support.evaluation_samples import write_tar

from flipscale.data.quarantine import BadSample
from flipscale.errors import UserError
from flipscale.transfer.labelled_images import check_same_classes, labelled_images


def test_the_classes_of_shards_are_the_labels_that_occur(tmp_path):
    members = [("0.png", b""), ("0.cls", b"12"), ("1.png", b""), ("1.cls", b"3"), ("2.png", b"")]
    images = labelled_images(str(write_tar(tmp_path / "a.tar", members)))
    assert (images.names, images.classes, len(images.samples)) == (("3", "12"), 2, 3)
    assert [images.label(sample) for sample in images.samples[:2]] == [1, 0]
    with pytest.raises(BadSample, match="the label is missing"):
        images.label(images.samples[2])


def test_the_classes_of_a_folder_are_its_folders(tmp_path):
    images = labelled_images(labelled_folder(tmp_path / "set", ["cat", "ape"], 2))
    assert images.names == ("ape", "cat")
    assert [(sample.name, images.label(sample)) for sample in images.samples] == [
        ("ape/0.png", 0),
        ("ape/1.png", 0),
        ("cat/0.png", 1),
        ("cat/1.png", 1),
    ]


def test_sets_without_two_labelled_classes_are_refused(tmp_path):
    labelled_folder(tmp_path / "gap", ["a", "b", "d"], 1)
    (tmp_path / "gap" / "c").mkdir()
    labelled_folder(tmp_path / "one", ["a"], 3)
    (tmp_path / "empty" / "a").mkdir(parents=True)
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "0.png").write_bytes(picture(0, 0, 2))
    write_tar(tmp_path / "texts.tar", [("0.png", b""), ("0.txt", b"a dog")])
    write_tar(tmp_path / "words.tar", [("0.png", b""), ("0.cls", b"dog")])
    for name, message in (
        (
            "gap",
            "has 3 images for 4 classes, and none in 1 of its class folders, the first being c; add images",
        ),
        ("one", "has only one class"),
        ("empty", "holds no labelled image; give shards"),
        ("flat", "has no sub-folders"),
        ("texts.tar", "holds no labelled image"),
        ("words.tar", "the label of words.tar/0 is 'dog'"),
        ("none.tar", "is not a file"),
    ):
        with pytest.raises(UserError, match=message):
            labelled_images(str(tmp_path / name))


@pytest.mark.parametrize("counted", [True, False])
def test_directories_of_shards_are_refused(tmp_path, counted):
    """CLIP_benchmark's converter writes them; its counts may be missing."""
    for split in ("test", "train"):
        (tmp_path / "set" / split).mkdir(parents=True)
        labelled_tar(tmp_path / "set" / split / "0.tar", 2, 1)
        if counted:
            (tmp_path / "set" / split / "nshards.txt").write_text("1\n")
    with pytest.raises(UserError, match=r"set holds shards, .*, as in .*set/train/\{0\.\.9\}\.tar"):
        labelled_images(str(tmp_path / "set"))
    if counted:
        with pytest.raises(UserError, match=r"name them, as in .*set/train/\{0\.\.9\}\.tar"):
            labelled_images(str(tmp_path / "set" / "train"))


def test_archive_among_images_does_not_make_a_folder_of_shards(tmp_path):
    data = labelled_folder(tmp_path / "set", ["a", "b"], 2)
    labelled_tar(tmp_path / "set" / "a" / "a.tar", 2, 1)
    assert labelled_images(data).names == ("a", "b")


def test_both_sets_must_have_the_same_classes(tmp_path):
    three = labelled_images(labelled_tar(tmp_path / "three.tar", 3, 1))
    four = labelled_images(labelled_tar(tmp_path / "four.tar", 4, 1))
    folder = labelled_images(labelled_folder(tmp_path / "set", ["0", "1", "2"], 1))
    other = labelled_images(labelled_folder(tmp_path / "other", ["0", "1", "b"], 1))
    check_same_classes(three, folder)
    for train, test, message in (
        (three, four, r"three.tar has 3 classes and .*four.tar has 4, and only .*four.tar has 3; give"),
        (four, three, r"four.tar has 4 classes and .*three.tar has 3, and only .*four.tar has 3; give"),
        (folder, other, r"set has 3 classes and .*other has 3, and only .*set has 2; give"),
    ):
        with pytest.raises(UserError, match=message):
            check_same_classes(train, test)
