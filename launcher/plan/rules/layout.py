"""How the layers are split over pipeline stages and their virtual chunks."""

from __future__ import annotations

import re
from collections.abc import Iterator

from launcher.config.layout import ACCOUNTED, expand, layer_pattern
from launcher.config.parallelism import LAYERS_PER_CHUNK as PER_CHUNK
from launcher.config.parallelism import LAYOUT, VIRTUAL
from launcher.plan.rules.case import Case, Unreadable, divisors

FIRST = "--decoder-first-pipeline-num-layers"
LAST = "--decoder-last-pipeline-num-layers"


def _parts(case: Case) -> list[str]:
    text = case.text(LAYOUT)
    if not text:
        raise Unreadable(LAYOUT)
    try:
        return expand(text)
    except ValueError:
        raise Unreadable(LAYOUT) from None


def _counted(case: Case) -> int:
    """Return the layers as the split counts them."""
    return case.layers + sum(case.has(flag) for flag in ACCOUNTED)


def one_split(case: Case) -> Iterator[str]:
    """validate_args, TransformerConfig: the split is stated in one way."""
    ways = [flag for flag in (LAYOUT, VIRTUAL, PER_CHUNK) if case.has(flag)]
    around = [flag for flag in (FIRST, LAST) if case.has(flag)]
    accounted = [flag for flag in ACCOUNTED if case.has(flag)]
    if len(ways) > 1:
        yield f"{case.said(ways[0])} and {case.said(ways[1])}: give one of them"
    elif case.has(LAYOUT) and around + accounted:
        yield f"{case.said(LAYOUT)} and {case.said((around + accounted)[0])}: give one of them"
    elif case.has(PER_CHUNK) and around:
        yield f"{case.said(PER_CHUNK)} and {case.said(around[0])}: write {VIRTUAL} instead"
    elif around and accounted:
        yield f"{case.said(around[0])} and {case.said(accounted[0])}: give one of them"


def _single(case: Case) -> None:
    """Leave it to `one_split` where that objects."""
    if any(one_split(case)):
        raise Unreadable("split")


def virtual_needs_pipeline(case: Case) -> Iterator[str]:
    """validate_args: interleaving needs a pipeline, of three stages without p2p overlap."""
    flag = next((flag for flag in (LAYOUT, VIRTUAL, PER_CHUNK) if case.has(flag)), VIRTUAL)
    if case.has(VIRTUAL) and (case.number(VIRTUAL) or 0) < 1:
        yield f"{case.said(VIRTUAL)} is below 1"
        return
    if case.has(PER_CHUNK) and (case.number(PER_CHUNK) or 0) < 1:
        yield f"{case.said(PER_CHUNK)} is below 1"
        return
    if case.virtual == 1:
        return
    overlapped = not case.has("--no-overlap-p2p-communication")
    if case.pipeline <= (1 if overlapped else 2):
        extra = "" if overlapped else " with --no-overlap-p2p-communication"
        yield (
            f"{case.said(flag)} makes virtual stages, which need PP above "
            f"{1 if overlapped else 2}{extra}, not {case.pipeline}"
        )


def even_split(case: Case) -> Iterator[str]:
    """validate_args, get_num_layers_to_build: each stage and each chunk has as many layers."""
    _single(case)
    if case.has(LAYOUT, FIRST, LAST):
        return
    layers = _counted(case)
    with_them = " with embedding and loss" if layers != case.layers else ""
    if layers % case.pipeline:
        yield (
            f"{layers} layers{with_them} ({case.said('--num-layers')}) cannot be split over "
            f"PP={case.pipeline}: PP may be {divisors(layers)}, or give a {LAYOUT}"
        )
        return
    share = layers // case.pipeline
    if case.has(PER_CHUNK) and share % case.size(PER_CHUNK):
        yield (
            f"{share} layers{with_them} a stage do not divide into chunks of "
            f"{case.said(PER_CHUNK)}: they may be {divisors(share)}"
        )
    elif case.has(VIRTUAL) and case.pipeline > 1 and share % case.size(VIRTUAL):
        yield (
            f"{share} layers{with_them} a stage cannot be split over {case.said(VIRTUAL)}: "
            f"it may be {divisors(share)}"
        )


def uneven_split(case: Case) -> Iterator[str]:
    """TransformerConfig: first and last stage as given, the rest shared evenly, in whole chunks."""
    _single(case)
    given = [flag for flag in (FIRST, LAST) if case.has(flag)]
    if case.has(LAYOUT) or not given:
        return
    chunks = case.virtual
    for flag in given:
        layers = case.number(flag) or 0
        if layers < 1:
            yield f"{case.said(flag)} is below 1"
            return
        if layers % chunks:
            yield f"{case.said(flag)} cannot be split over {chunks} virtual stages"
            return
    stages = case.pipeline - len(given)
    rest = case.layers - sum(case.size(flag) for flag in given)
    ends = " and ".join(case.said(flag) for flag in given)
    if stages < 0 or bool(rest) != bool(stages):
        yield f"{ends} leave {rest} of {case.layers} layers to {max(stages, 0)} other stages"
    elif stages and rest % (stages * chunks):
        yield (
            f"{ends} leave {rest} layers, which cannot be split over {stages} other stages"
            + (f" of {chunks} virtual ones" if chunks > 1 else "")
        )
    elif not stages and chunks > 1:
        yield f"{ends} leave no stage between them; {chunks} virtual stages need one"


def overfull_ends(case: Case) -> Iterator[str]:
    """A first and last stage beyond the depth: Megatron gives the others less than no layer."""
    given = [flag for flag in (FIRST, LAST) if case.has(flag)]
    total = sum(case.size(flag) for flag in given)
    if given and total > case.layers and not any(uneven_split(case)):
        ends = " and ".join(case.said(flag) for flag in given)
        yield f"{ends} are more than the {case.layers} layers of the model"


def readable_layout(case: Case) -> Iterator[str]:
    """PipelineParallelLayerLayout.parse_str_to_list: a layout's letters."""
    if not case.has(LAYOUT):
        return
    text = case.text(LAYOUT) or ""
    try:
        parts = expand(text) if text else []
    except ValueError as error:
        yield f"{case.said(LAYOUT)}: {error}"
        return
    # Megatron unrolls groups once, so one inside another stays.
    unknown = re.sub(r"[EtmL]", "", "".join(parts))
    if unknown:
        yield (
            f"{case.said(LAYOUT)} has {unknown[0]!r}: only E (embedding), t (layer), m (MTP), "
            "L (loss), |, groups in () and *N are known"
        )
    elif re.search(r"\s", text) or re.search(r"\([^)]*\(", text):
        yield f"{case.said(LAYOUT)}: Megatron reads neither spaces nor groups in groups"


def layout_chunks(case: Case) -> Iterator[str]:
    """validate_args: a layout has as many parts as there are stages, or a multiple."""
    if case.has(LAYOUT) and not any(readable_layout(case)) and len(_parts(case)) % case.pipeline:
        yield (
            f"{case.said(LAYOUT)} has {len(_parts(case))} chunks, which do not divide by "
            f"PP={case.pipeline}: it needs {case.pipeline}, {2 * case.pipeline}, …"
        )


def layout_layers(case: Case) -> Iterator[str]:
    """PipelineParallelLayerLayout.validate_layer_layout: each layer once, no more and no less.

    Issue NVIDIA/Megatron-LM#1304: a split that lost layers trained all the same.
    """
    if not case.has(LAYOUT) or any(readable_layout(case)) or any(layout_chunks(case)):
        return
    text = "".join(_parts(case))
    if text.count("t") != case.layers:
        yield (f"{case.said(LAYOUT)} has {text.count('t')} layers (t), the model has {case.layers}")
    if text.count("m") != case.mtp:
        yield f"{case.said(LAYOUT)} has {text.count('m')} MTP layers (m), the model has {case.mtp}"
    for letter, name in (("E", "embedding"), ("L", "loss")):
        if text.count(letter) != 1:
            yield f"{case.said(LAYOUT)} has {text.count(letter)} times {letter} ({name}), not once"


def _miscounted(case: Case) -> bool:
    """Say whether a rule before this one objects to the layout."""
    return any(any(rule(case)) for rule in (readable_layout, layout_chunks, layout_layers))


def layout_order(case: Case) -> Iterator[str]:
    """validate_layer_layout: embedding first, loss last, MTP after the decoder in one chunk."""
    if not case.has(LAYOUT) or _miscounted(case):
        return
    parts = _parts(case)
    text = "".join(parts)
    if text[0] != "E" or text[-1] != "L":
        yield f"{case.said(LAYOUT)} starts with {text[0]} and ends with {text[-1]}, not E and L"
    if not case.mtp:
        return
    if "t" in text[text.index("m") :]:
        yield f"{case.said(LAYOUT)} has layers (t) after the first MTP layer (m)"
        return
    holding = [number for number, part in enumerate(parts) if "m" in part]
    if len(holding) > 1:
        yield f"{case.said(LAYOUT)} spreads the MTP layers (m) over {len(holding)} chunks, not one"
    elif holding[0] < len(parts) - case.pipeline:
        yield f"{case.said(LAYOUT)} has MTP (m) before the last virtual stage of its rank"


def empty_chunks(case: Case) -> Iterator[str]:
    """A chunk without anything in it still costs two messages for each micro-batch."""
    if not case.has(LAYOUT) or _miscounted(case):
        return
    empty = [number for number, part in enumerate(_parts(case)) if not part]
    if empty:
        where = ", ".join(
            f"rank {number % case.pipeline} chunk {number // case.pipeline}" for number in empty[:3]
        )
        yield f"{case.said(LAYOUT)} leaves chunks empty ({where})"


def moe_pattern(case: Case) -> Iterator[str]:
    """get_gpt_decoder_layer_specs: a word on each layer whether it has experts."""
    flag = "--moe-layer-freq"
    text = case.text(flag) or "1"
    if case.experts:
        yield from _pattern(case, flag, text)


def linear_pattern(case: Case) -> Iterator[str]:
    """get_transformer_block_with_experimental_attention_variant_spec: the same for attention."""
    flag = "--linear-attention-freq"
    text = case.text(flag)
    if text and case.text("--experimental-attention-variant") == "gated_delta_net":
        yield from _pattern(case, flag, text)


def _pattern(case: Case, flag: str, text: str) -> Iterator[str]:
    if "[" not in text:
        number = case.number(flag)
        if number is not None and number < 1:
            yield f"{case.said(flag)} is below 1"
        return
    try:
        pattern = layer_pattern(text, case.layers)
    except ValueError:
        return  # the parser's
    if len(pattern) != case.layers:
        yield f"{case.said(flag)} describes {len(pattern)} layers, the model has {case.layers}"
    elif not set(pattern) <= {0, 1}:
        yield f"{case.said(flag)} has other entries than 0 and 1"


ERRORS = (
    one_split,
    virtual_needs_pipeline,
    even_split,
    uneven_split,
    readable_layout,
    layout_chunks,
    layout_layers,
    layout_order,
    moe_pattern,
    linear_pattern,
)
RUN_TIME = (overfull_ends,)
WARNINGS = (empty_chunks,)
