"""The lower bound of a step's time: the device's roofline, the network's model, and the host's launches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flipscale.planning.network import Network, collective_seconds
from flipscale.rehearsal.results import CollectiveResult, StepTime

LAUNCH = 5e-6
"""Seconds of the host for one kernel of eager PyTorch, an assumption."""
_COMPUTING = ("products", "attention", "loss")


def time_of_collectives(
    counted: Sequence[Mapping[str, Any]], ranks_per_node: int, network: Network
) -> tuple[CollectiveResult, ...]:
    """Return the collectives of a step with their modelled times.

    Args:
        counted: The fields of `Collective` with `count`, its calls in a step.
        ranks_per_node: Processes of a node.
        network: The links.
    """
    results: list[CollectiveResult] = []
    for fields in counted:
        # Neighbours of a group that are further apart share a node with fewer of their group.
        together = max(1, min(fields["ranks"], ranks_per_node // fields["stride"]))
        kind, size, ranks, count = (fields[name] for name in ("kind", "bytes", "ranks", "count"))
        timed = "all_reduce" if kind in ("barrier", "all_to_all") else kind
        seconds = collective_seconds(timed, size, ranks, together, network)
        results.append(
            CollectiveResult(
                kind, fields["dtype"], size, ranks, together, fields["blocking"], count, count * seconds
            )
        )
    return tuple(sorted(results, key=lambda result: -result.seconds))


def bound_step(
    device_seconds: Mapping[str, float],
    collectives: Sequence[CollectiveResult],
    launches: int,
    model_flops: int,
    peak_flops: float,
) -> StepTime:
    """Return the lower bound of a step.

    Collectives that do not block run while kernels do; what they need beyond these is exposed.

    Args:
        device_seconds: The device's seconds by kind of work.
        collectives: The collectives of the step.
        launches: Kernels of the step.
        model_flops: Operations that the model needs.
        peak_flops: FLOP/s of the GPU.
    """
    device = sum(device_seconds.values())
    network = sum(collective.seconds for collective in collectives)
    blocking = sum(collective.seconds for collective in collectives if collective.blocking)
    exposed = blocking + max(0.0, network - blocking - device)

    host = launches * LAUNCH
    total = max(device + exposed, host)
    computing = sum(seconds for kind, seconds in device_seconds.items() if kind in _COMPUTING)
    terms = {"operations": computing, "memory": device - computing, "network": exposed}
    bound_by = "launches" if host > device + exposed else max(terms, key=lambda term: terms[term])
    return StepTime(device, network, exposed, host, total, bound_by, model_flops / peak_flops / total)
