"""Seconds of a GPU's kernels: matrix products, attention, what memory bounds.

A product takes the time of its operations at the sustained rate, plus that of its bytes: measured
products follow this sum more closely than the larger of the two.
"""

from __future__ import annotations

import dataclasses

from launcher.config.gpus import Known
from launcher.plan.projection.constants import Constants
from launcher.records import dataclass

HALF_ROWS = 48  # rows with which a product reaches half of its rate: a tile is 128 rows


@dataclass(frozen=True)
class Kernels:
    """The sustained rates of a GPU for one job."""

    product: float  # FLOP/s of products in the job's precision
    bf16: float  # FLOP/s of products that stay in BF16
    attention: float  # FLOP/s
    memory: float  # bytes/s of element-wise kernels
    weights: float  # bytes/s inside products
    quantize: float  # seconds a byte; 0 in BF16
    operand: int  # bytes of a product's operand
    depth: float  # inner dimension with which a product reaches half of its rate


def kernels(gpu: Known, constants: Constants, fp8: str | None, fp8_attention: bool) -> Kernels:
    """Return a GPU's rates."""
    clock = (gpu.watts / 1200) ** constants.power if gpu.blackwell else 1.0
    if gpu.blackwell:
        bf16, eight = constants.e_bf16_blackwell, constants.e_fp8_blackwell
        core = constants.e_attention_blackwell * (constants.ultra if gpu.ultra else 1.0)
    else:
        bf16, eight = constants.e_bf16_hopper, constants.e_fp8_hopper
        core = constants.e_attention_hopper
    half = gpu.bf16 * bf16 * clock
    memory = gpu.hbm * constants.b_memory
    return Kernels(
        product=gpu.fp8 * eight * clock if fp8 else half,
        bf16=half,
        # FP8 attention has more of its time in its softmax, which stays as it is.
        attention=gpu.bf16 * core * clock * (1.5 if fp8_attention and fp8 else 1.0),
        memory=memory,
        weights=gpu.hbm * constants.b_weights,
        quantize=constants.quantize / memory if fp8 else 0.0,
        operand=1 if fp8 else 2,
        depth=constants.depth,
    )


@dataclass(frozen=True)
class Product:
    """Matrix products of one kind in a layer: `count` of `rows` by `inner` times `columns`."""

    rows: float
    inner: int
    columns: int
    count: int = 1
    half: bool = False  # stays in BF16

    @property
    def operations(self) -> float:
        """FLOPs of the forward pass."""
        return 2.0 * self.rows * self.inner * self.columns * self.count


def forward(one: Product, rates: Kernels) -> tuple[float, float]:
    """Return the seconds of a product's forward pass, and of quantizing its input."""
    return _product(one, rates, 2), _quantize(one.rows * one.inner * one.count, rates, one)


def backward(one: Product, rates: Kernels, gradient_bytes: int) -> tuple[float, float]:
    """Return the seconds of both products of the backward pass, and of quantizing its input.

    The product for the weights adds to the accumulated gradient: it reads and writes it.
    """
    gradient = 2.0 * gradient_bytes * one.inner * one.columns * one.count / rates.weights
    into = dataclasses.replace(one, inner=one.columns, columns=one.inner)
    weights = dataclasses.replace(one, rows=one.inner, inner=max(1, round(one.rows)))
    # The weights' product reads what it shares with the others; its result is counted above.
    both = _product(into, rates, 2) + _product(weights, rates, 0) + gradient
    return both, _quantize(one.rows * one.columns * one.count, rates, one)


def _product(one: Product, rates: Kernels, out: int) -> float:
    rate = rates.bf16 if one.half else rates.product
    operand = 2 if one.half else rates.operand
    moved = (
        operand * (one.rows * one.inner + one.inner * one.columns) + out * one.rows * one.columns
    )
    if not one.operations:
        return 0.0
    full = rate * one.rows / (one.rows + HALF_ROWS) * one.inner / (one.inner + rates.depth)
    return one.operations / full + one.count * moved / rates.weights


def _quantize(elements: float, rates: Kernels, one: Product) -> float:
    """Read two bytes, write one for each of the two directions that products need."""
    return 0.0 if one.half else elements * 4 * rates.quantize


def core(pairs: float, heads: float, qk: int, v: int, rates: Kernels) -> tuple[float, float]:
    """Return the forward and backward seconds of attention's core over `pairs` of tokens.

    Its backward pass has five products for the forward pass's two.
    """
    operations = 2.0 * pairs * heads * (qk + v)
    seconds = operations / rates.attention
    return seconds, 2.5 * seconds / 0.85
