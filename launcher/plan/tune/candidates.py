"""The candidates: all sizes that a job could have, as far as they divide."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from launcher.config.arguments import Arguments, merge, parse
from launcher.plan.shape import Model, Shape

SIZES = ("TP", "PP", "VPP", "EP", "CP", "MBS")
MOST_TENSOR = 8
MOST_MICRO_BATCH = 8
SHORTEST_CONTEXT = 8192  # tokens of a rank: below, context parallelism only costs

_FLAGS = {
    "TP": "--tensor-model-parallel-size",
    "PP": "--pipeline-model-parallel-size",
    "EP": "--expert-model-parallel-size",
    "CP": "--context-parallel-size",
    "MBS": "--micro-batch-size",
}
_VIRTUAL = "--num-virtual-stages-per-pipeline-rank"
_LAYOUT = "--pipeline-model-parallel-layout"
# The flags that the candidates decide, and the flags that would contradict them.
_DECIDED = (
    _VIRTUAL,
    _LAYOUT,
    "--num-layers-per-virtual-pipeline-stage",
    "--decoder-first-pipeline-num-layers",
    "--decoder-last-pipeline-num-layers",
)
_RECOMPUTED = (
    "--recompute-granularity",
    "--recompute-modules",
    "--recompute-method",
    "--recompute-num-layers",
    "--recompute-activations",
)


@dataclass(frozen=True, order=True)
class Candidate:
    """One choice of sizes, recomputation and layout."""

    tensor: int
    pipeline: int
    virtual: int
    expert: int
    context: int
    micro_batch: int
    recompute: tuple[str, ...]  # modules; ("full",)
    layout: str = ""  # empty: an even split

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes, in the order of SIZES; no two results have the same."""
        return (
            self.tensor,
            self.pipeline,
            self.virtual,
            self.expert,
            self.context,
            self.micro_batch,
        )

    @property
    def words(self) -> list[str]:
        """The Megatron arguments of this choice, beside those of a job."""
        numbers: dict[str, int] = dict(zip(SIZES, self.sizes))
        words = [word for name, flag in _FLAGS.items() for word in (flag, str(numbers[name]))]
        if self.layout:
            words += [_LAYOUT, self.layout]
        elif self.virtual > 1:
            words += [_VIRTUAL, str(self.virtual)]
        return words + self.recompute_words

    @property
    def recompute_words(self) -> list[str]:
        """The arguments of recomputation."""
        if self.recompute == ("full",):
            words = ["--recompute-granularity", "full", "--recompute-method", "uniform"]
            return [*words, "--recompute-num-layers", "1"]
        if not self.recompute:
            return []
        return ["--recompute-granularity", "selective", "--recompute-modules", *self.recompute]

    def arguments(self, base: Arguments) -> Arguments:
        """Return a job's arguments with this choice."""
        kept = {flag: one for flag, one in base.items() if flag not in (*_DECIDED, *_RECOMPUTED)}
        return merge(kept, parse(self.words, "tune"))


def divisors(number: int, most: int | None = None) -> list[int]:
    """Return a number's divisors, up to `most`."""
    return [size for size in range(1, min(number, most or number) + 1) if number % size == 0]


def powers(most: int) -> list[int]:
    """Return the powers of two up to `most`."""
    return [2**n for n in range(most.bit_length()) if 2**n <= most]


def candidates(shape: Shape, fixed: Mapping[str, int]) -> Iterator[Candidate]:
    """Yield every choice whose sizes divide. The even split stands for all layouts.

    `fixed` are the sizes that stay, by their names in SIZES. What is recomputed is chosen later.
    """
    model, world, training = shape.model, shape.parallel.world, shape.training

    def allowed(name: str, sizes: list[int]) -> list[int]:
        return [fixed[name]] if name in fixed else sizes

    attention = model.attention
    groups = attention.heads if attention.latent else attention.query_groups
    tensors = [size for size in powers(min(MOST_TENSOR, world)) if groups % size == 0]
    contexts = [
        size
        for size in powers(max(1, training.sequence // SHORTEST_CONTEXT))
        if training.sequence % (2 * size) == 0
    ]
    experts = divisors(model.experts.count) if model.experts else [1]
    for tensor in allowed("TP", tensors):
        for context in allowed("CP", contexts):
            for pipeline in allowed("PP", divisors(world, model.layers)):
                ranks = tensor * context * pipeline
                if world % ranks:
                    continue
                data = world // ranks
                for micro_batch in allowed("MBS", powers(MOST_MICRO_BATCH)):
                    if training.global_batch % (data * micro_batch):
                        continue
                    micro_batches = training.global_batch // (data * micro_batch)
                    for expert in allowed("EP", experts):
                        if world % (pipeline * expert * shape.parallel.expert_tensor):
                            continue
                        for virtual in _virtual(shape, pipeline, micro_batches, fixed):
                            yield Candidate(
                                tensor, pipeline, virtual, expert, context, micro_batch, ()
                            )


def _virtual(
    shape: Shape, pipeline: int, micro_batches: int, fixed: Mapping[str, int]
) -> list[int]:
    """Return the virtual stages worth trying: at least a layer each, a whole group in flight."""
    if pipeline == 1 or micro_batches < pipeline:
        return [1] if fixed.get("VPP", 1) == 1 or pipeline == 1 else []
    if "VPP" in fixed:
        return [fixed["VPP"]]
    most = shape.model.layers // pipeline
    even = counted(shape)
    sizes = {1, 2, 3, 4, 6, 8, 12, 16, 24}
    sizes |= set(divisors(even // pipeline)) if even % pipeline == 0 else set()
    return sorted(size for size in sizes if size <= most)


def counted(shape: Shape) -> int:
    """Return the layers that an even split counts: embedding and loss too, where asked."""
    return shape.model.layers + shape.split.account_embedding + shape.split.account_loss


def recomputations(model: Model, present: tuple[str, ...], graphed: bool) -> list[tuple[str, ...]]:
    """Return the choices of recomputation, with the job's own among them; the last saves most."""
    found: list[tuple[str, ...]] = [(), present]
    steps = ["layernorm", "moe_act"] if model.experts else ["layernorm"]
    if model.attention.latent:
        steps.append("mla_up_proj")
    if not all(model.moe):
        steps.append("mlp")
    if model.attention.latent:
        found.append(("mla_up_proj",))
    found += [tuple(steps[: n + 1]) for n in range(len(steps))]
    if model.experts and not graphed:
        found.append(("layernorm", "mla_up_proj", "moe")[:: 1 if model.attention.latent else 2])
    if not graphed:
        found.append(("full",))
    return list(dict.fromkeys(found))


def layouts(costs: list[float], extra: float, chunks: int, mtp: int, counted: int) -> list[str]:
    """Return how to split layers of these costs over chunks; '' for an even split that divides.

    `extra` is the cost of what stands behind the last layer, MTP and loss; `counted` are the
    layers that an even split counts.
    """
    found = [""] if counted % chunks == 0 else []
    packed = pack(costs, extra, chunks)
    if packed is not None and len(set(packed)) > (not mtp):
        found.append(written(packed, mtp))
    return found


def pack(costs: list[float], extra: float, chunks: int) -> list[int] | None:
    """Return the layers of each chunk so that the most costly chunk costs least."""
    if chunks > len(costs):
        return None
    low, high = max(sum(costs) + extra, 0.0) / chunks, sum(costs) + extra
    best = None
    for _ in range(24):
        limit = (low + high) / 2
        sizes = _filled(costs, extra, chunks, limit)
        if sizes is None:
            low = limit
        else:
            best, high = sizes, limit
    return best


def _filled(costs: list[float], extra: float, chunks: int, limit: float) -> list[int] | None:
    """Fill chunk after chunk up to a limit; None where layers are left over."""
    sizes = [0] * chunks
    load, chunk = 0.0, 0
    for number, cost in enumerate(costs):
        left = len(costs) - number
        room = chunks - 1 - chunk
        # A chunk closes when it is full, or when each of the others needs one of what is left.
        if sizes[chunk] and (load + cost > limit * (1 + 1e-9) or left <= room):
            chunk += 1
            load = 0.0
            if chunk == chunks:
                return None
        sizes[chunk] += 1
        load += cost
    if chunk < chunks - 1 or load + extra > limit * (1 + 1e-9):
        return None
    return sizes


def written(sizes: list[int], mtp: int) -> str:
    """Return a layout string: `Et*4|(tttt|)*14tmL`."""
    parts = ["t" * size for size in sizes]
    parts[0] = "E" + parts[0]
    parts[-1] += "m" * mtp + "L"
    return "|".join(parts)


def with_recompute(one: Candidate, modules: tuple[str, ...], layout: str) -> Candidate:
    """Return a candidate that recomputes these modules, in this layout."""
    return dataclasses.replace(one, recompute=modules, layout=layout)
