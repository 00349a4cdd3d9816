"""Captions of rendered scenes: each is true of its scene, and they vary."""

import re
from collections import Counter

from support.scenes import NAMED

from flipscale.data.synthetic import captions, vocabulary

SAID = {
    word: relation for relation in (*vocabulary.RELATIONS, "inside") for word in captions._WORDS[relation]
}


def test_captions_are_true(splits):
    for sample in splits["train"] + splits["val"] + splits["test"]:
        text, truth = sample["txt"].lower().rstrip("."), sample["json"]
        assert truth["caption"] == sample["txt"]
        things = truth["objects"]
        # Sizes, textures and grounds that a caption names occur in the picture.
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
        # A relation word is between the first object and the others, and is true of them.
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
    texts = [sample["txt"] for sample in splits["train"]]
    assert len(set(texts)) > 0.95 * len(texts)
    skeletons = Counter(NAMED.sub("THING", caption) for caption in texts)
    assert len(skeletons) > 100
    said = " ".join(texts)
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
