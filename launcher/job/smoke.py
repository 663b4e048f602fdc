"""SMOKE=1: shrink a recipe to seconds and keep its structure.

Everything that decides whether a recipe works is kept: dense and MoE layers, the kind of attention,
shared experts, the router, MTP, the shape of the pipeline layout, and every kind of parallelism of
the recipe, at size 2. Sizes that only decide how long it takes are made small.
"""

from __future__ import annotations

from launcher.config import layout, parallelism
from launcher.config.arguments import Argument, Arguments, value
from launcher.records import dataclass

ITERATIONS = 20
ORIGIN = "SMOKE=1"

# Largest values; a flag is replaced only where the recipe has a larger value.
WIDTHS = {
    "--hidden-size": 64,
    "--ffn-hidden-size": 128,
    "--num-attention-heads": 4,
    "--num-query-groups": 2,
    "--kv-channels": 16,
    "--q-lora-rank": 32,
    "--kv-lora-rank": 16,
    "--qk-head-dim": 16,
    "--qk-pos-emb-head-dim": 8,
    "--v-head-dim": 16,
    "--linear-key-head-dim": 16,
    "--linear-value-head-dim": 16,
    "--linear-num-key-heads": 2,
    "--linear-num-value-heads": 4,
    "--num-experts": 8,
    "--moe-ffn-hidden-size": 32,
    "--moe-shared-expert-intermediate-size": 32,
    "--moe-router-num-groups": 4,
    "--moe-router-group-topk": 2,
    "--moe-router-topk": 4,
    "--mtp-num-layers": 1,
    "--micro-batch-size": 2,
    "--seq-length": 64,
    "--max-position-embeddings": 64,
    "--vocab-size": 512,
    "--make-vocab-size-divisible-by": 64,
}
# A smoke run reads no data and leaves no checkpoint, unless the command line asks for it.
REMOVED = (
    "--load",
    "--save",
    "--save-interval",
    "--data-path",
    "--data-args-path",
    "--data-cache-path",
    "--tokenizer-model",
    "--train-samples",
    "--lr-decay-samples",
    "--lr-warmup-samples",
    "--lr-warmup-init",
    "--lr-decay-iters",
    "--lr-warmup-iters",
    "--exit-duration-in-mins",
)
RUN = {
    "--mock-data": (),
    "--tokenizer-type": ("NullTokenizer",),
    "--vocab-size": (str(WIDTHS["--vocab-size"]),),
    "--train-iters": (str(ITERATIONS),),
    "--eval-iters": ("0",),
    "--eval-interval": ("1000",),
    "--lr": ("3e-3",),
    "--min-lr": ("3e-3",),
    "--lr-decay-style": ("constant",),
    "--num-workers": ("0",),
    "--log-interval": ("1",),
}


@dataclass(frozen=True)
class Shrunk:
    """The shrunken job."""

    arguments: Arguments
    ranks: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Sizes:
    """Parallel sizes: tensor, pipeline, expert, context, virtual pipeline, expert tensor."""

    tp: int
    pp: int
    ep: int
    cp: int
    vpp: int
    etp: int


def shrink(arguments: Arguments, command_line: Arguments, limit: int) -> Shrunk:
    """Return the recipe on at most `limit` ranks; `command_line` still decides how long it runs."""
    before = _sizes(arguments)
    after, ranks = _fit(before, limit)
    small: dict[str, Argument] = dict(arguments)

    def put(flag: str, *values: object) -> None:
        small[flag] = Argument(flag, tuple(str(given) for given in values), ORIGIN)

    for flag, width in WIDTHS.items():
        given = value(arguments, flag)
        if given is not None and given.isdigit() and int(given) > width:
            put(flag, width)
    for flag in REMOVED:
        if flag not in command_line:
            small.pop(flag, None)
    for flag, values in RUN.items():
        if flag not in command_line:
            put(flag, *values)

    put("--tensor-model-parallel-size", after.tp)
    put("--pipeline-model-parallel-size", after.pp)
    put("--expert-model-parallel-size", after.ep)
    put("--context-parallel-size", after.cp)
    put("--expert-tensor-parallel-size", after.etp)
    layers = _split(arguments, small, after, put)
    put("--num-layers", layers)
    _patterns(arguments, layers, put)
    micro_batches = 2 * after.pp  # a multiple of PP, which the interleaved schedule asks for
    data_parallel = ranks // (after.tp * after.pp * after.cp)
    put(
        "--global-batch-size",
        int(value(small, "--micro-batch-size") or 1) * data_parallel * micro_batches,
    )
    return Shrunk(small, ranks, _notes(arguments, small, before, after, ranks))


def _sizes(arguments: Arguments) -> Sizes:
    found = parallelism.read(arguments)
    virtual = parallelism.virtual_stages(arguments, found.pipeline)
    return Sizes(
        found.tensor, found.pipeline, found.expert, found.context, virtual, found.expert_tensor
    )


def _fit(sizes: Sizes, limit: int) -> tuple[Sizes, int]:
    """Return 2 for each size above 1 while ranks are left: first pipeline, last expert."""
    pp = 2 if sizes.pp > 1 and limit >= 2 else 1
    cp = 2 if sizes.cp > 1 and 2 * pp <= limit else 1
    tp = 2 if sizes.tp > 1 and 2 * pp * cp <= limit else 1
    ranks = pp * cp * tp
    etp = tp if sizes.etp > 1 else 1
    ep = 2 if sizes.ep > 1 and 2 * pp * etp <= limit else 1
    ranks = max(ranks, pp * etp * ep)
    vpp = 2 if sizes.vpp > 1 and pp > 1 else 1
    return Sizes(tp, pp, ep, cp, vpp, etp), ranks


def _split(arguments: Arguments, small: dict[str, Argument], after: Sizes, put) -> int:
    """Split a few layers over the small pipeline as the recipe does; return how many there are."""
    chunks = after.pp * after.vpp
    text = value(arguments, "--pipeline-model-parallel-layout")
    uneven = value(arguments, "--decoder-first-pipeline-num-layers")
    accounted = sum(flag in arguments for flag in layout.ACCOUNTED)
    for flag in (
        "--pipeline-model-parallel-layout",
        "--num-layers-per-virtual-pipeline-stage",
        "--num-virtual-stages-per-pipeline-rank",
        "--decoder-first-pipeline-num-layers",
        "--decoder-last-pipeline-num-layers",
        *(layout.ACCOUNTED if chunks == 1 else ()),
    ):
        small.pop(flag, None)
    # Enough layers for a dense and an MoE layer, and for each kind of attention.
    least = int(value(arguments, "--linear-attention-freq") or 2)
    if chunks == 1:
        return least
    if text is not None:
        parts = [_one_layer(part) for part in _ends_and_middle(layout.expand(text), chunks)]
        short = max(0, least - sum(part.count("t") for part in parts))
        parts[0] = parts[0].replace("E", "E" + "t" * short, 1)
        put("--pipeline-model-parallel-layout", "|".join(parts))
        return sum(part.count("t") for part in parts)
    if after.vpp > 1:
        put("--num-virtual-stages-per-pipeline-rank", after.vpp)
    if uneven is not None:
        # With virtual stages and the last stage given too, Megatron would divide by zero.
        put("--decoder-first-pipeline-num-layers", 2 * after.vpp)
        return 3 * after.vpp
    per_chunk = max(-(-least // chunks), 2 if accounted else 1)
    return per_chunk * chunks - accounted


def _ends_and_middle(parts: list[str], chunks: int) -> list[str]:
    middle = parts[1 : chunks - 1]
    return [parts[0], *middle, *["t"] * (chunks - 2 - len(middle)), parts[-1]]


def _one_layer(part: str) -> str:
    """Keep the kinds of layer of a chunk, one of each: 'tttt' is 't', 'tmL' stays."""
    return "".join(letter for index, letter in enumerate(part) if letter not in part[:index])


def _patterns(arguments: Arguments, layers: int, put) -> None:
    """Keep one dense layer where the recipe has any."""
    pattern = value(arguments, "--moe-layer-freq")
    if pattern is None or pattern.isdigit():
        return
    if 0 in layout.layer_pattern(pattern, int(value(arguments, "--num-layers") or layers)):
        put("--moe-layer-freq", f"([0]*1+[1]*{layers - 1})")
    else:
        put("--moe-layer-freq", f"([1]*{layers})")


def _notes(
    arguments: Arguments, small: Arguments, before: Sizes, after: Sizes, ranks: int
) -> tuple[str, ...]:
    named = {"layers": "--num-layers", "hidden": "--hidden-size", "experts": "--num-experts"}
    named["sequence"] = "--seq-length"
    pairs = {name: (value(arguments, flag), value(small, flag)) for name, flag in named.items()}
    for name in ("tp", "pp", "vpp", "ep", "cp"):
        pairs[name.upper()] = (str(getattr(before, name)), str(getattr(after, name)))
    changed = [f"{name} {old} → {new}" for name, (old, new) in pairs.items() if old != new]
    data = "mock data" if "--mock-data" in small else "your data"
    notes = [f"smoke: {', '.join(changed)}; {ranks} ranks; {data}"]
    for name in ("tp", "pp", "ep", "cp", "vpp"):
        if getattr(before, name) > 1 and getattr(after, name) == 1:
            notes.append(
                f"smoke: {name.upper()}{getattr(before, name)} → 1: no ranks are left for it"
            )
    return tuple(notes)
