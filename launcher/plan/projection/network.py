"""Seconds of communication between GPUs, for the groups of one job."""

from __future__ import annotations

from launcher.config.gpus import Known
from launcher.plan.projection.constants import Constants
from launcher.records import dataclass

LATENCY = 30e-6  # of an exchange between experts
COLLECTIVE = 20e-6  # of a collective in NVLink; SimuMax measures 22 to 25 µs
FIRST_BYTE = 15e-6  # between two pipeline stages


@dataclass(frozen=True)
class Network:
    """The rates of a job's groups, in bytes/s a GPU."""

    domain: int  # GPUs that share NVLink
    nvlink: float  # at its peak
    network: float  # at its peak
    e_nvlink: float
    e_network: float
    e_tensor: float


def network(gpu: Known, constants: Constants, dispatcher: str) -> Network:
    """Return the rates that a job's dispatcher and collectives reach."""
    fraction = {"hybridep": 1.0, "deepep": constants.e_deepep}.get(dispatcher, constants.e_alltoall)
    return Network(
        domain=gpu.nvlink_domain,
        nvlink=gpu.nvlink,
        network=gpu.network,
        e_nvlink=constants.e_nvlink * fraction,
        # DeepEP was made for this network; NCCL's all-to-all has many small messages.
        e_network=constants.e_network * (fraction if dispatcher == "alltoall" else 1.0),
        e_tensor=constants.e_tensor,
    )


def distinct(groups: int, chosen: int) -> float:
    """Return the groups that a token's `chosen` experts lie in, on average, of equal groups."""
    return groups * (1 - (1 - 1 / groups) ** chosen)


def exchange(
    rates: Network, tokens: float, width: int, ranks: int, top_k: int, dispatcher: str, limit: int
) -> float:
    """Return the seconds of one dispatch or one combine between `ranks` ranks.

    Fused dispatchers send a token once to every NVLink domain with one of its experts, and once
    to every rank there; all-to-all once for every expert; all-gather to everyone. A router that
    chooses groups first reaches at most `limit` of the domains.
    """
    if ranks == 1:
        return 0.0
    size = tokens * width * 2.0
    domains = -(-ranks // rates.domain)
    away = (domains - 1) / domains
    if dispatcher in ("deepep", "hybridep"):
        near = min(top_k, distinct(ranks, top_k)) * (ranks - 1) / ranks
        far = min(distinct(domains, top_k), limit) * away
    elif dispatcher == "allgather":
        near, far = ranks - 1.0, (ranks - 1) * away
    else:
        near, far = top_k * (1 - away) * (ranks - 1) / ranks, top_k * away
    inside = near * size / (rates.nvlink * rates.e_nvlink)
    outside = far * size / (rates.network * rates.e_network)
    return max(inside, outside) + LATENCY


def collective(rates: Network, size: float, ranks: int) -> float:
    """Return the seconds of an all-gather or reduce-scatter whose whole has `size` bytes."""
    if ranks == 1:
        return 0.0
    if ranks <= rates.domain:
        rate = rates.nvlink * rates.e_tensor
    else:  # a ring through several domains; all of a domain's adapters share the crossing
        rate = rates.network * rates.e_network * min(rates.domain, 8)
    return size * (ranks - 1) / ranks / rate + COLLECTIVE


def spread(rates: Network, size: float, ranks: int, apart: int) -> float:
    """Return the seconds of reducing or gathering `size` bytes among ranks `apart` ranks apart."""
    if ranks == 1 or size == 0:
        return 0.0
    near = ranks * apart <= rates.domain
    rate = rates.nvlink * rates.e_tensor if near else rates.network * rates.e_network
    return size * (ranks - 1) / ranks / rate + COLLECTIVE


def transfer(rates: Network, size: float, apart: int) -> float:
    """Return the seconds of sending `size` bytes to the neighbouring pipeline stage."""
    near = 2 * apart <= rates.domain
    rate = rates.nvlink * rates.e_tensor if near else rates.network * rates.e_network
    return size / rate + FIRST_BYTE
