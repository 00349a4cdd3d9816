"""constraints-lowest.txt: the oldest version of every package that pyproject.toml names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
# Requirements are on lines of their own; Python 3.10 reads no TOML.
REQUIREMENTS = [
    Requirement(text)
    for text in re.findall(r'^    "([a-z][^"]*>=[^"]*)",', (ROOT / "pyproject.toml").read_text(), re.M)
]


def pins() -> dict[str, Version]:
    lines = (ROOT / "constraints-lowest.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): Version(version) for name, version in pairs}


def test_the_requirements_are_read():
    assert len(REQUIREMENTS) > 35
    assert {"torch", "pytest"} <= {requirement.name for requirement in REQUIREMENTS}


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=str)
def test_the_oldest_allowed_version_is_tested(requirement):
    """`>=3.6` allows 3.6.1 as its oldest where 3.6.0 was never published."""
    pin = pins()[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(pin)
    (floor,) = (Version(part.version) for part in requirement.specifier if part.operator == ">=")
    assert pin.release[: len(floor.release)] == floor.release
