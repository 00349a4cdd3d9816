"""The interface of gloo, if only NCCL's is set."""

from __future__ import annotations

import logging
import os
from typing import Any, NoReturn

import pytest
import torch.distributed as dist

from flipscale.distributed.interfaces import default_gloo_interface, nccl_interface, usable_interfaces
from flipscale.distributed.placement import Placement
from flipscale.distributed.world import join_world

INTERFACES = ["lo", "docker0", "eno1", "ib0", "ib1", "ib10"]


@pytest.fixture(autouse=True)
def _no_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("ib0", "ib0"),
        ("ib", "ib0"),
        ("ib1", "ib1"),
        ("=ib10", "ib10"),
        ("=ib", None),
        ("eth,en", "eno1"),
        ("=ib1,ib0", "ib0"),
        ("^docker", "eno1"),
        ("^=lo,docker0,eno1", "ib0"),
        ("^eno,ib,docker", "lo"),
        ("hsn", None),
    ],
)
def test_interface_is_the_first_that_nccl_would_take(wanted: str, expected: str | None) -> None:
    assert nccl_interface(wanted, INTERFACES) == expected


def test_gloo_uses_the_interface_of_nccl(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process group is not made: the interface is set before gloo opens its first socket."""
    seen: list[str] = []

    def init_process_group(*arguments: Any, **options: Any) -> NoReturn:
        seen.append(os.environ["GLOO_SOCKET_IFNAME"])
        raise RuntimeError("no peers")

    assert "lo" in usable_interfaces()
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "=lo")
    monkeypatch.setattr(dist, "init_process_group", init_process_group)
    with pytest.raises(RuntimeError, match="no peers"):
        join_world(Placement(rank=0, size=2))

    assert seen == ["lo"]


def test_own_interface_of_gloo_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "lo")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eno7")
    default_gloo_interface()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "eno7"


def test_unknown_interface_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "nosuch")
    with caplog.at_level(logging.WARNING):
        default_gloo_interface()
    assert "GLOO_SOCKET_IFNAME" not in os.environ
    assert "NCCL_SOCKET_IFNAME is nosuch, but no interface of this machine that is up matches" in caplog.text
