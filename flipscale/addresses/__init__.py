"""Addresses of shards: their secrets, the variables that they refer to, and how messages show them."""

from flipscale.addresses.display import Formatter, without_secrets
from flipscale.addresses.references import reference_names, resolve, variable
from flipscale.addresses.secret_parts import find_secret, is_address, without_signature

__all__ = [
    "Formatter",
    "find_secret",
    "is_address",
    "reference_names",
    "resolve",
    "variable",
    "without_secrets",
    "without_signature",
]
