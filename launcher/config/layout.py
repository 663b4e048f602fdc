"""How layers are counted and split over pipeline stages and their virtual chunks."""

from __future__ import annotations

import ast
import math
import re
from typing import Any

from launcher.config.arguments import Arguments, shortened, value, whole_number
from launcher.config.settings import Settings

MOST_LAYERS = 1_000_000  # entries of a layout or a list: no model has that many layers
ACCOUNTED = ("--account-for-embedding-in-pipeline-split", "--account-for-loss-in-pipeline-split")


def counted_layers(settings: Settings, arguments: Arguments) -> int | None:
    """Return how many layers the split counts: the depth, and embedding and loss where asked."""
    depth = value(arguments, "--num-layers")
    if depth is None or not depth.isdecimal() or len(depth) > 18:
        return settings.NUM_LAYERS
    return int(depth) + sum(flag in arguments for flag in ACCOUNTED)


def uneven_fits(layers: int, pp: int, vpp: int, first: int | None, last: int | None) -> bool:
    """Say whether the stages between a given first and last one get equal, whole chunks."""
    ends = [number for number in (first, last) if number is not None]
    if any(number % vpp for number in ends):
        return False
    middle, stages = layers - sum(ends), pp - len(ends)
    if stages == 0:
        # Megatron divides by the number of middle stages when there are virtual ones.
        return middle == 0 and vpp == 1
    return stages > 0 and middle > 0 and middle % (stages * vpp) == 0


def balanced(layers: int, chunks: int, mtp_layers: int) -> str:
    """Return the layout string that splits `layers` over `chunks` as evenly as possible.

    Where the layers do not divide, some chunks get one layer less: first the last chunk, which also
    holds the loss and the MTP layers, then the first chunk, which holds the embedding, then others
    from the back. Raises ValueError beyond MOST_LAYERS.
    """
    if max(layers, chunks, mtp_layers) > MOST_LAYERS:
        raise ValueError(f"a layout has at most {MOST_LAYERS:,} layers and chunks")
    share, extra = divmod(layers, chunks)
    sizes = [share + 1] * chunks
    lighter = [chunks - 1, 0, *range(chunks - 2, 0, -1)]
    for chunk in lighter[: chunks - extra]:
        sizes[chunk] -= 1
    parts = ["t" * size for size in sizes]
    parts[0] = "E" + parts[0]
    parts[-1] += "m" * mtp_layers + "L"
    return "|".join(parts)


def expand(text: str) -> list[str]:
    """Return a layout string's chunks: 'Et|(tt|)*2mL' is ['Et', 'tt', 'tt', 'mL'].

    The grammar is Megatron's (PipelineParallelLayerLayout): E embedding, t decoder layer, m MTP
    layer, L loss, | between chunks, *n repeats the letter or (group) before it; commas are free.
    Raises ValueError for an unbalanced bracket and beyond MOST_LAYERS.
    """
    text = re.sub(r"[\s,]", "", text)
    while "(" in text:
        shorter = _repeated(r"\(([^()]*)\)(?:\*(\d+))?", text)
        if shorter == text:
            raise ValueError(f"unbalanced ( in layout {shortened(text)!r}")
        text = shorter
    return _repeated(r"(.)\*(\d+)", text).split("|")


def _repeated(pattern: str, text: str) -> str:
    """Repeat each match as often as its second group says. Raises ValueError beyond MOST_LAYERS."""
    parts, length, end = [], 0, 0
    for match in re.finditer(pattern, text):
        times = whole_number(match[2] or "1")
        parts += [text[end : match.start()], match[1] * min(times, MOST_LAYERS)]
        length += len(match[1]) * times
        if length > MOST_LAYERS:
            raise ValueError(f"layout {shortened(text)!r} has more than {MOST_LAYERS:,} layers")
        end = match.end()
    return "".join([*parts, text[end:]])


def layer_pattern(text: str, layers: int) -> list[int]:
    """Return a 0 or 1 for each layer, from `--moe-layer-freq` or `--linear-attention-freq`.

    A number N marks every N-th layer, counted from the first; an expression such as ([0]*3+[1]*58)
    is the list itself. Raises ValueError for anything else and beyond MOST_LAYERS.
    """
    if layers > MOST_LAYERS:
        raise ValueError(f"{layers} layers are more than {MOST_LAYERS:,}")
    if text.isdecimal():
        every = whole_number(text)
        if every == 0:
            raise ValueError("a layer frequency of 0 is below 1")
        return [int(layer % every == 0) for layer in range(layers)]
    try:
        pattern = expression(text)
    except (ValueError, TypeError):
        pattern = None
    if not isinstance(pattern, list) or not all(type(entry) is int for entry in pattern):
        raise ValueError(f"{shortened(text)!r} is no layer pattern such as ([0]*3+[1]*58)")
    return pattern


def expression(text: str) -> object:
    """Evaluate an expression of lists, as Megatron's parser reads it. Raises ValueError."""
    if re.search(r"[^,\d\[\]()+*]", text) or re.search(r"\d{19,}", text):
        raise ValueError(text)
    try:
        return _evaluate(ast.parse(text, mode="eval").body)
    except (SyntaxError, MemoryError, RecursionError, OverflowError, IndexError) as error:
        raise ValueError(text) from error


def _evaluate(node: ast.expr) -> Any:
    """Evaluate digits, brackets, commas, + and *. Raises ValueError for a long result."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, (ast.List, ast.Tuple)):
        items: list[object] = []
        for element in node.elts:
            if isinstance(element, ast.Starred):
                items += _evaluate(element.value)
            else:
                items.append(_evaluate(element))
        return items if isinstance(node, ast.List) else tuple(items)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.UAdd):
        return +_evaluate(node.operand)
    if isinstance(node, ast.Subscript):
        return _evaluate(node.value)[_evaluate(node.slice)]
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Mult, ast.Pow)):
        return _combined(node.op, _evaluate(node.left), _evaluate(node.right))
    raise ValueError(ast.dump(node))


def _combined(operation: ast.operator, left: Any, right: Any) -> Any:
    if isinstance(operation, ast.Add):
        return left + right
    size = math.prod(len(one) for one in (left, right) if isinstance(one, (list, tuple)))
    factors: tuple[Any, Any] = (left, right)
    for factor in factors:
        # A result of that length only costs time.
        if isinstance(factor, int) and size * factor > MOST_LAYERS:
            raise ValueError("too long")
    return left * right if isinstance(operation, ast.Mult) else left**right
