"""Captions of scenes: what a scene shows, put into words."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from flipscale.data.synthetic.scenes import Background, Scene, SceneObject

_FRAMES = ("{}", "{}", "{}", "a picture of {}", "an image of {}", "a drawing of {}", "there is {}")
_WORDS = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
    "inside": ("inside", "within"),
    "small": ("small", "little"),
    "medium": ("medium", "medium-sized"),
    "large": ("large", "big"),
}
_NEXT_TO = ("next to", "beside")
_PATTERNS = {"striped": "stripes", "dotted": "dots", "checked": "checks"}


def caption(rng: Random, scene: Scene) -> str:
    """Describe a scene in one sentence.

    Colour and shape are always named. The rest is mentioned at random, and every word of it is true.

    Args:
        rng: Random numbers; they determine the wording.
        scene: The scene to describe.
    """
    groups: list[list[SceneObject]] = []
    for thing in scene.objects:
        if groups and groups[-1][0].kind == thing.kind:
            groups[-1].append(thing)
        else:
            groups.append([thing])

    if len(scene.objects) == 1:
        article = rng.choices(("a", "the", "one", ""), (6, 1, 2, 2))[0]
        text = _phrase(rng, groups[0], article)
        if article:
            text = rng.choice(_FRAMES).format(text)
    else:
        text = rng.choice(_FRAMES).format(_describe_groups(rng, groups, scene.relation))

    if rng.random() < 0.15:
        text += _describe_background(rng, scene.background)
    if rng.random() < 0.15:
        text = text[0].upper() + text[1:] + "."
    return text


def _phrase(rng: Random, group: Sequence[SceneObject], article: str) -> str:
    """Return a noun phrase for objects of one kind, such as "two red stars with dots"."""
    thing = group[0]
    words: list[str] = []
    if rng.random() < (0.1 if thing.size == "medium" else 0.3):
        words.append(rng.choice(_WORDS[thing.size]))
    words.append(thing.colour)

    after = ""
    if thing.texture == "plain":
        if rng.random() < 0.15:
            words.insert(-1, "plain")
    elif rng.random() < 0.6:
        if rng.random() < 0.15:
            after = f" with {_PATTERNS[thing.texture]}"
        else:
            words.insert(rng.choice((-1, -1, len(words))), thing.texture)

    if len(group) > 1:
        plural = thing.shape + ("es" if thing.shape == "cross" else "s")
        return " ".join([("two", "three")[len(group) - 2], *words, plural]) + after

    if article == "a" and words[0][0] in "aeiou":
        article = "an"
    return " ".join([article] * bool(article) + [*words, thing.shape]) + after


def _describe_groups(rng: Random, groups: Sequence[Sequence[SceneObject]], relation: str | None) -> str:
    """Describe several objects and the relation of the first to the others."""
    phrases = [_phrase(rng, group, "a") for group in groups]
    if len(groups) == 1:  # two or three of the same
        if len(groups[0]) == 3:
            return phrases[0]
        upright = relation in ("above", "below")
        return phrases[0] + rng.choice(("", ", one above the other" if upright else " side by side"))

    assert relation is not None, "several objects always have a relation"
    others = " and ".join(phrases[1:])
    lot = rng.random()
    if lot < 0.7:
        return f"{phrases[0]} {rng.choice(_WORDS[relation])} {others}"
    if relation == "inside":
        return f"{others} around {phrases[0]}"
    if lot < 0.85 and len(phrases) == 2:
        return f"{phrases[0]} {rng.choice(_NEXT_TO)} {others}"

    rng.shuffle(phrases)
    return f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def _describe_background(rng: Random, background: Background) -> str:
    """Return the end of a caption that describes the background."""
    words = background.colour
    if background.kind == "noisy" and rng.random() < 0.7:
        words = f"noisy {words}"
    if background.kind == "gradient" and rng.random() < 0.7:
        return f" on a {words} gradient"

    return rng.choice((" on a {} background", " against a {} background", ", {} background")).format(words)
