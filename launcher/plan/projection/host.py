"""Operations that the CPU issues for a layer, counted in operations of PyTorch.

A linear layer of Transformer Engine costs as much as several: its Python code, its quantizers and
its autograd function. Counts were read off Megatron-Core's and Transformer Engine's modules; the
seconds of one operation are fitted. CUDA graphs replace the operations of a module by one.
"""

from __future__ import annotations

from launcher.records import dataclass

LINEAR = 8
NORM = 3
CORE = 9  # attention's core, and what prepares its arguments
RESIDUAL = 3
REPLAY = 3  # a graph


@dataclass(frozen=True)
class Count:
    """Operations of one part of a layer; a backward pass issues about as many."""

    forward: float
    backward: float

    def __add__(self, other: Count) -> Count:
        return Count(self.forward + other.forward, self.backward + other.backward)

    def __mul__(self, times: float) -> Count:
        return Count(self.forward * times, self.backward * times)


NOTHING = Count(0, 0)


def even(operations: float) -> Count:
    """Return a part with as many operations backward as forward."""
    return Count(operations, operations)


def attention(latent: bool, compressed: bool, qk_norm: bool, fp8_ops: float) -> Count:
    """Count self-attention, its norm and its residual."""
    linears = (5 if compressed else 4) if latent else 2
    # Latent heads are put together from two parts each; rotation takes two operations.
    shaping = 14 if latent else 6
    norms = NORM * (2 if latent else 2 * qk_norm)
    return even(LINEAR * linears * fp8_ops + shaping + norms + 4 + CORE + RESIDUAL + NORM)


def linear_attention(fp8_ops: float) -> Count:
    """Count a gated delta net: its kernels are many and small."""
    return even(LINEAR * 2 * fp8_ops + 40 + RESIDUAL)


def dense(fp8_ops: float) -> Count:
    """Count a dense feed-forward network with its norm and its residual."""
    return even(LINEAR * 2 * fp8_ops + 3 + RESIDUAL)


def router(fused: bool, router_ops: float) -> Count:
    """Count the router with its losses, and the bookkeeping before tokens leave."""
    return even(router_ops * (0.85 if fused else 1.0))


def dispatch(dispatcher: str, fused_permute: bool) -> Count:
    """Count dispatch, permutation and combine."""
    calls = {"hybridep": 14, "deepep": 20}.get(dispatcher, 36)
    return even(calls + (0 if fused_permute else 24))


def experts(local: int, grouped: bool, fused: bool, fp8_ops: float, expert_ops: float) -> Count:
    """Count the local experts: one product after another, or grouped."""
    if fused:
        return even(12)
    if not grouped:
        return even(local * (LINEAR * 2 * fp8_ops + 4))
    return even((LINEAR * 2 + expert_ops * local) * fp8_ops + 4)


def shared_expert(gate: bool, fp8_ops: float) -> Count:
    """Count the shared experts, which are one dense network."""
    return even(LINEAR * 2 * fp8_ops + 3 + 5 * gate)
