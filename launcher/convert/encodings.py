"""How published weights are stored, and how they become the plain tensors of the mapping tables.

Quantized weights are dequantized when they are read, as their publishers' reference code does;
stacks of experts (transformers 5) are read as the matrices of the single experts.

    FP8     weight [m, n] float8_e4m3, weight_scale_inv [⌈m/b⌉, ⌈n/c⌉] in float32, bfloat16 or
            float8_e8m0; b, c are quantization_config's weight_block_size (128, 128). Or
            weight_scale: one, or one a row (compressed-tensors, float-quantized).
    INT4    weight_packed int32 [m, n/8], weight_scale [m, n/group], weight_shape
            (compressed-tensors, pack-quantized; Kimi-K2-Thinking)
    MXFP4   x_blocks uint8 [e, rows, n/32, 16], x_scales uint8 [e, rows, n/32] (gpt-oss)
    stacks  experts.gate_up_proj [e, 2f, h], experts.down_proj [e, h, f]; gpt-oss's are
            [e, h, 2f] and [e, f, h] where they are not MXFP4, with biases [e, 2f] and [e, h]

Sources: inference/kernel.py of deepseek-ai/DeepSeek-V3 (weight_dequant); compressed-tensors 0.20.0,
compressors/pack_quantized/base.py; transformers 5.24.0, integrations/mxfp4.py and
models/qwen3_moe/modeling_qwen3_moe.py and models/gpt_oss/modeling_gpt_oss.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from launcher.convert.audit import stop
from launcher.convert.hugging_face import DTYPES, Source, Stored, Tensor
from launcher.convert.tables import Table
from launcher.errors import UsageError

BLOCK = 128  # rows and columns that share a scale, where the configuration does not say
GROUP = 32  # values of a row that share a scale in MXFP4
INT4_BIAS = 8  # what is added to a value before it is packed: 0 to 15 stand for -8 to 7
# float4_e2m1: sign, two bits of exponent, one of mantissa.
FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
E8M0_BIAS = 127
PACKED = ("_packed", "_blocks")  # ends of the names of a quantized weight's values


@dataclass(frozen=True)
class Quantized:
    """A weight that is computed from its stored parts, and read as bfloat16."""

    parts: tuple[Tensor, ...]
    shape: tuple[int, ...]
    decode: Callable[..., torch.Tensor]
    dtype: str = "BF16"

    @property
    def path(self) -> Path:
        """The file of the weight itself."""
        return self.parts[0].path

    def read(self) -> torch.Tensor:
        """Return the weight."""
        return self.decode(*(part.read() for part in self.parts))

    def item(self, number: int) -> Quantized:
        """Return one of the entries along the first axis; each part has as many."""
        parts = tuple(part.item(number) for part in self.parts)
        return replace(self, parts=parts, shape=self.shape[1:])


@dataclass(frozen=True)
class Transposed:
    """A matrix that is stored by its columns."""

    stored: Tensor

    @property
    def path(self) -> Path:
        """The file that it is in."""
        return self.stored.path

    @property
    def dtype(self) -> str:
        """What it is read as."""
        return self.stored.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape, once it is read."""
        return self.stored.shape[::-1]

    def read(self) -> torch.Tensor:
        """Return the matrix by its rows."""
        return self.stored.read().t().contiguous()


def decoded(source: Source, table: Table) -> Source:
    """Return the source with every tensor plain. Raises UsageError for an unknown encoding."""
    scheme = _scheme(source.config)
    beside = set(beside_language(source))
    tensors: dict[str, Stored] = {
        plain_name(name): one for name, one in source.tensors.items() if name not in beside
    }
    problems: list[str] = []
    for act in (_fp8, _int4):
        act(tensors, scheme, problems)
    if table.alternating:
        _mxfp4(tensors, problems)
    stop(sorted(problems), "the source is quantized in a way that is not dequantized here:")
    _check_encoded(tensors, scheme)
    plain = _alternating(tensors) if table.alternating else _unstacked(tensors, table)
    return replace(source, tensors=dict(plain))


# Prefixes of the language model in a multimodal model, and in the text model alone.
_LANGUAGE = (
    ("language_model.lm_head.", "lm_head."),
    ("language_model.model.", "model."),
    ("model.language_model.", "model."),
)
_BESIDE = re.compile(
    r"(model\.)?(visual|vision_tower|vision_model|multi_modal_projector|mm_projector)\..*"
)


def beside_language(source: Source) -> list[str]:
    """Return the tensors of a multimodal model that do not belong to its language model."""
    if "text_config" not in source.config:
        return []
    return [name for name in source.tensors if _BESIDE.fullmatch(name)]


def plain_name(name: str) -> str:
    """Return a tensor's name in the language model alone."""
    for start, plain in _LANGUAGE:
        if name.startswith(start):
            return plain + name[len(start) :]
    return name


def names_as(there: Iterable[str]) -> Callable[[str], str]:
    """Return a function from a plain name to the name in a model with these names."""
    changes = [
        (plain, start)
        for start, plain in _LANGUAGE
        if any(name.startswith(start) for name in there)
    ]

    def named(name: str) -> str:
        for plain, start in changes:
            if name.startswith(plain):
                return start + name[len(plain) :]
        return name

    return named


@dataclass(frozen=True)
class Scheme:
    """The content of quantization_config."""

    method: str  # "" without one
    form: str  # compressed-tensors: the format
    block: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.method} {self.form}".strip() or "no quantization_config"


_KNOWN = ("", "fp8", "mxfp4")
_COMPRESSED = ("pack-quantized", "float-quantized")


def _scheme(config: Mapping[str, Any]) -> Scheme:
    """Read quantization_config. Raises UsageError for a method that is not known, naming it."""
    inner = config.get("text_config")
    settings = config.get("quantization_config") or config.get("compression_config")
    if not settings and isinstance(inner, Mapping):
        settings = inner.get("quantization_config")
    settings = settings if isinstance(settings, Mapping) else {}
    method, form = str(settings.get("quant_method") or ""), str(settings.get("format") or "")
    if method == "compressed-tensors":
        _check_groups(settings, form)
    elif method not in _KNOWN:
        raise UsageError(
            f"the source is quantized: {method}, which is not dequantized here (known: fp8, mxfp4, "
            "compressed-tensors pack-quantized); take the publication that is not quantized"
        )
    block = settings.get("weight_block_size") or (BLOCK, BLOCK)
    if len(block) != 2:
        raise UsageError(f"quantization_config: weight_block_size {block} is no pair of sizes")
    return Scheme(method, form, (int(block[0]), int(block[1])))


def _check_groups(settings: Mapping[str, Any], form: str) -> None:
    """Raise UsageError for options of compressed-tensors that are not computed here."""
    groups = settings.get("config_groups") or {}
    weights = [(group or {}).get("weights") or {} for group in groups.values()]
    symmetric = all(one.get("symmetric", True) for one in weights)
    known = form in _COMPRESSED and symmetric
    if form == "pack-quantized":
        known = known and all(one.get("num_bits") == 4 for one in weights)
    if not known:
        bits = ", ".join(sorted({f"{one.get('num_bits')} bits" for one in weights})) or "no groups"
        kind = "" if symmetric else ", asymmetric"
        raise UsageError(
            f"the source is quantized: compressed-tensors {form} ({bits}{kind}), which is not "
            "dequantized here (pack-quantized with 4 bits, symmetric, is); take the publication "
            "that is not quantized"
        )


def _fp8(tensors: dict[str, Stored], scheme: Scheme, problems: list[str]) -> None:
    """Join FP8 weights with their scales."""
    for name, weight in list(tensors.items()):
        if weight.dtype != "F8_E4M3" or not isinstance(weight, Tensor):
            continue
        where = next((name + end for end in ("_scale_inv", "_scale") if name + end in tensors), "")
        scales = tensors.pop(where, None)
        if not isinstance(scales, Tensor):
            problems.append(f"{name} is FP8 without {name.rsplit('.', 1)[-1]}_scale_inv")
            continue
        block = _block(weight.shape, scales.shape, where, scheme)
        if block is None or scales.dtype not in ("F32", "BF16", "F8_E8M0"):
            sizes = "×".join(map(str, scheme.block))
            needed = [-(-size // by) for size, by in zip(weight.shape, scheme.block)]
            problems.append(
                f"{where} is {scales.dtype} {list(scales.shape)}, {sizes} blocks of "
                f"{list(weight.shape)} need {needed} in F32, BF16 or F8_E8M0"
            )
            continue
        tensors[name] = Quantized((weight, scales), weight.shape, _Dequantize(block))
    for name in tensors:
        for end in ("_scale_inv", "_scale"):
            weight = tensors.get(name.removesuffix(end)) if name.endswith(end) else None
            if weight is not None and isinstance(weight, Tensor):
                problems.append(f"{name} scales a {weight.dtype} tensor")


@dataclass(frozen=True)
class _Dequantize:
    block: tuple[int, int]

    def __call__(self, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        return dequantize(weight, scales, self.block)


def _block(
    weight: tuple[int, ...], scales: tuple[int, ...], name: str, scheme: Scheme
) -> tuple[int, int] | None:
    """Return how many rows and columns share a scale; None where the shapes do not fit."""
    if len(weight) != 2:
        return None
    if name.endswith("_scale"):  # one for all, or one a row
        if scales in ((), (1,), (1, 1)):
            return weight
        if scales in ((weight[0],), (weight[0], 1)):
            return 1, weight[1]
    blocks = tuple(-(-size // by) for size, by in zip(weight, scheme.block))
    return scheme.block if scales == blocks else None


def dequantize(
    weight: torch.Tensor, scales: torch.Tensor, block: tuple[int, int] = (BLOCK, BLOCK)
) -> torch.Tensor:
    """Return FP8 [m, n] times its blocks' scales, in float32, rounded to bfloat16."""
    rows, columns = weight.shape
    if scales.numel() == 1 and rows <= BLOCK:
        return (weight.float() * scales.float()).bfloat16()
    result = torch.empty(rows, columns, dtype=torch.bfloat16)
    scales = scales.float().reshape(-(-rows // block[0]), -(-columns // block[1]))
    if block == (1, columns):
        step = BLOCK
        for begin in range(0, rows, step):
            part = slice(begin, begin + step)
            result[part] = weight[part].float() * scales[part]
        return result
    wide = scales.repeat_interleave(block[1], 1)[:, :columns]
    for number, scale in enumerate(wide):
        part = slice(number * block[0], (number + 1) * block[0])
        result[part] = weight[part].float() * scale
    return result


def _int4(tensors: dict[str, Stored], scheme: Scheme, problems: list[str]) -> None:
    """Join packed weights with their scales."""
    for name in [name for name in tensors if name.endswith("_packed")]:
        plain = name.removesuffix("_packed")
        packed = tensors.pop(name)
        scales = tensors.pop(f"{plain}_scale", None)
        shape = tensors.pop(f"{plain}_shape", None)
        if not isinstance(scales, Tensor) or not isinstance(shape, Tensor):
            problems.append(f"{name} has no {plain.rsplit('.', 1)[-1]}_scale or _shape beside it")
            continue
        ok = isinstance(packed, Tensor) and packed.dtype == "I32" and len(packed.shape) == 2
        rows, columns = (*packed.shape, 0, 0)[:2]
        ok = ok and scales.shape[:1] == (rows,) and len(scales.shape) == 2
        if not ok or columns * 8 % scales.shape[1] or scales.dtype not in ("BF16", "F16", "F32"):
            problems.append(
                f"{name} is {packed.dtype} {list(packed.shape)} with scales {scales.dtype} "
                f"{list(scales.shape)}; I32 [m, n/8] with [m, n/group] is known"
            )
            continue
        assert isinstance(packed, Tensor)
        parts = (packed, scales, shape)
        tensors[plain] = Quantized(parts, (rows, columns * 8), unpack_int4)


def unpack_int4(packed: torch.Tensor, scales: torch.Tensor, shape: torch.Tensor) -> torch.Tensor:
    """Return int32 [m, n/8] of eight values each, lowest bits first, times scales [m, n/group].

    `shape` must be [m, n]. Raises UsageError where it is not.
    """
    rows, columns = packed.shape
    if shape.tolist() != [rows, columns * 8]:
        raise UsageError(
            f"weight_shape says {shape.tolist()} of a packed weight of {[rows, columns * 8]}"
        )
    group = columns * 8 // scales.shape[1]
    shifts = torch.arange(0, 32, 4, dtype=torch.int32)
    result = torch.empty(rows, columns * 8, dtype=torch.bfloat16)
    for begin in range(0, rows, BLOCK):
        part = slice(begin, begin + BLOCK)
        values = (packed[part, :, None] >> shifts & 15).reshape(-1, columns * 8) - INT4_BIAS
        wide = scales[part].float().repeat_interleave(group, 1)
        result[part] = values * wide
    return result


def _mxfp4(tensors: dict[str, Stored], problems: list[str]) -> None:
    """Join blocks of FP4 values with their scales."""
    for name in [name for name in tensors if name.endswith("_blocks")]:
        plain = name.removesuffix("_blocks")
        blocks, scales = tensors.pop(name), tensors.pop(f"{plain}_scales", None)
        if not isinstance(blocks, Tensor) or not isinstance(scales, Tensor):
            problems.append(f"{name} has no {plain.rsplit('.', 1)[-1]}_scales beside it")
            continue
        *rows, groups, half = (0, *blocks.shape)[-4:]
        fits = len(blocks.shape) == 4 and half * 2 == GROUP and scales.shape == (*rows, groups)
        if not fits or {blocks.dtype, scales.dtype} != {"U8"}:
            problems.append(
                f"{name} is {blocks.dtype} {list(blocks.shape)} with scales {scales.dtype} "
                f"{list(scales.shape)}; U8 [e, m, n/32, 16] with U8 [e, m, n/32] is known"
            )
            continue
        shape = (*rows, groups * GROUP)
        tensors[plain] = Quantized((blocks, scales), shape, unpack_mxfp4)


def unpack_mxfp4(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Return uint8 [..., n/32, 16], low half byte first, times 2^(scale - 127): [..., n].

    Scale 255 is NaN in the format; the values become infinite or NaN, which a conversion refuses.
    """
    value = torch.tensor(FP4)
    bytes_ = torch.arange(256)
    pairs = torch.stack((value[bytes_ & 15], value[bytes_ >> 4]), -1)  # of each byte
    wide = pairs[blocks.int()].flatten(-2)
    exponents = (scales.int() - E8M0_BIAS)[..., None]
    return torch.ldexp(wide, exponents).bfloat16().flatten(-2)


def _check_encoded(tensors: Mapping[str, Stored], scheme: Scheme) -> None:
    """Raise UsageError for a dtype that no weight has; the cause comes first."""
    strange = {name: one for name, one in tensors.items() if one.dtype not in DTYPES}
    strange = {n: one for n, one in strange.items() if not re.search(r"\.(inv_freq|rank)$", n)}
    if strange:
        kinds = ", ".join(sorted({one.dtype for one in strange.values()}))
        stop(
            [f"{name} is {one.dtype} {list(one.shape)}" for name, one in sorted(strange.items())],
            f"the source stores weights as {kinds} ({scheme}), which are not dequantized here:",
        )


_STACK = re.compile(r"(?P<start>.*\.)mlp\.experts\.(?P<what>gate_up_proj|down_proj)(\.weight)?")


def stacks(names: Iterable[str]) -> list[str]:
    """Return the names of stacks of experts among names."""
    return [name for name in names if _STACK.fullmatch(name)]


def _unstacked(tensors: Mapping[str, Stored], table: Table) -> Iterator[tuple[str, Stored]]:
    """Return the tensors with every stack taken apart: the experts' matrices lie in it in turn."""
    stacked = stacks(tensors)
    problems = []
    for name, one in tensors.items():
        found = _STACK.fullmatch(name)
        if not found:
            yield Experts(table).beside_singles(name) if stacked else name, one
            continue
        if not isinstance(one, Tensor) or len(one.shape) != 3 or one.dtype not in DTYPES:
            problems.append(f"{name} is {one.dtype} {list(one.shape)}")
            continue
        start = f"{found['start']}{table.experts[0]}.experts"
        gate, up, down = table.experts[1:]
        names = [gate, up] if found["what"] == "gate_up_proj" else [down]
        count, rows, columns = one.shape
        if rows % len(names):
            problems.append(f"{name} is {list(one.shape)}")
            continue
        matrices = replace(one, shape=(count * len(names), rows // len(names), columns))
        for number in range(count * len(names)):
            expert, part = divmod(number, len(names))
            yield f"{start}.{expert}.{names[part]}.weight", matrices.item(number)
    stop(problems, "the source has stacks of experts that are no plain [experts, rows, columns]:")


_ALTERNATING = re.compile(r"(.*\.mlp\.experts)\.(gate_up_proj|down_proj)(_bias)?")


def _alternating(tensors: Mapping[str, Stored]) -> Iterator[tuple[str, Stored]]:
    """Return the tensors with gpt-oss's stacks taken apart; gate and up rows stay in turn."""
    problems = []
    for name, one in tensors.items():
        found = _ALTERNATING.fullmatch(name)
        if not found:
            yield name, one
            continue
        start, what, bias = found.groups()
        if len(one.shape) != (2 if bias else 3) or not isinstance(one, (Tensor, Quantized)):
            problems.append(f"{name} is {one.dtype} {list(one.shape)}")
            continue
        for expert in range(one.shape[0]):
            item = one.item(expert)
            if isinstance(item, Tensor) and not bias:
                item = Transposed(item)
            yield f"{start}.{expert}.{what}.{'bias' if bias else 'weight'}", item
    stop(problems, "the source has stacks of experts of other shapes than gpt-oss's:")


@dataclass(frozen=True)
class Experts:
    """Names of an architecture's tensors, beside single experts and beside stacks."""

    table: Table

    def stack_of(self, name: str, stacks: Iterable[str]) -> str | None:
        """Return the stack that holds an expert's matrix or bias; None where there is none."""
        if self.table.alternating:
            found = re.fullmatch(r"(.*\.mlp\.experts)\.\d+\.(.*_proj)\.(weight|bias)", name)
            return found and f"{found[1]}.{found[2]}" + ("_bias" if found[3] == "bias" else "")
        block, gate, up, down = self.table.experts
        found = re.fullmatch(rf"(.*\.){block}\.experts\.\d+\.({gate}|{up}|{down})\.weight", name)
        if not found:
            return None
        what = "down_proj" if found[2] == down else "gate_up_proj"
        start = f"{found[1]}mlp.experts.{what}"
        return next((stack for stack in (start, f"{start}.weight") if stack in stacks), None)

    def beside_stacks(self, name: str) -> str:
        """Return transformers 5's name of a tensor, from the name beside single experts."""
        return name.replace(f".{self.table.experts[0]}.", ".mlp.")

    def beside_singles(self, name: str) -> str:
        """Return the published name of a tensor that is beside stacks."""
        return name.replace(".mlp.", f".{self.table.experts[0]}.")
