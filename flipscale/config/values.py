"""The base of all blocks, and the types of their values: counts, durations, shares and names.

The documentation's table of keys is made from the schema (tools/documentation/job_keys.py). `Kind` and
`Default` say there what the types and the defaults of Python do not say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from flipscale.config.units import Cadence, parse_bytes, parse_cadence, parse_count, parse_duration
from flipscale.formatting import control_character


class Strict(BaseModel):
    """A frozen block without unknown keys; the string below a field is its documentation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


@dataclass(frozen=True)
class Kind:
    """The documentation's word for a type; metadata of an `Annotated` type."""

    text: str


@dataclass(frozen=True)
class Default:
    """What the documentation gives as the default of a key whose default is None or computed."""

    text: str


def _one_line(text: str) -> str:
    if (sign := control_character(text)) is not None:
        raise ValueError(f"the text contains {sign!r}, which would end a line of a batch script; remove it")
    return text


def _above_zero(weight: float) -> float:
    if weight <= 0.0:
        raise ValueError("a weight must be above zero; leave out what is not to be read")
    return weight


Count = Annotated[int, BeforeValidator(parse_count), Kind("count")]
PositiveCount = Annotated[int, Field(gt=0), BeforeValidator(parse_count), Kind("count > 0")]
# Far above what anybody trains, and far below what fills a machine's memory before an error is said.
ImageSide = Annotated[int, Field(gt=0, le=8_192), BeforeValidator(parse_count), Kind("count > 0")]
ModelSize = Annotated[int, Field(gt=0, le=65_536), BeforeValidator(parse_count), Kind("count > 0")]
ClusterSize = Annotated[int, Field(gt=0, le=1_000_000), BeforeValidator(parse_count), Kind("count > 0")]
Bytes = Annotated[int, Field(gt=0), BeforeValidator(parse_bytes), Kind("size")]
Duration = Annotated[
    int, Field(gt=0), BeforeValidator(parse_duration), PlainSerializer(lambda s: f"{s}s"), Kind("duration")
]
Every = Annotated[Cadence, BeforeValidator(parse_cadence), PlainSerializer(str), Kind("cadence")]
Fraction = Annotated[float, Field(ge=0.0, le=1.0), Kind("0 to 1")]
Share = Annotated[float, Field(ge=0.0, lt=1.0), Kind("0 to below 1")]
PositiveFloat = Annotated[float, Field(gt=0.0), Kind("number > 0")]
Weight = Annotated[float, AfterValidator(_above_zero), Kind("number > 0")]
Line = Annotated[str, AfterValidator(_one_line), Kind("text")]
FilledLine = Annotated[Line, Field(min_length=1)]
# The name of a run becomes a directory, so it is never `..`.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$"), Kind("name")]
