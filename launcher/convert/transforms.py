"""Transforms from Hugging Face tensors to one Megatron parameter, and back.

Every transform has two directions: `forward` makes the whole, unsplit Megatron parameter of
the tensors that its row names, in that order; `backward` returns them. Both work on the meta
device too, so shapes are checked with the very code that moves the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Union

import torch

from launcher.plan.shape import Attention, LinearAttention


@dataclass(frozen=True)
class Copy:
    """The tensor as it is."""

    def forward(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the one tensor."""
        return tensors[0]

    def backward(self, whole: torch.Tensor) -> list[torch.Tensor]:
        """Return the one tensor."""
        return [whole]


@dataclass(frozen=True)
class Stack:
    """Gate over up projection: [f, h] and [f, h] become [2f, h]."""

    def forward(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Concatenate along the rows."""
        return torch.cat(list(tensors))

    def backward(self, whole: torch.Tensor) -> list[torch.Tensor]:
        """Return both halves."""
        return list(whole.chunk(2))


@dataclass(frozen=True)
class Alternating:
    """Rows of gate and up projection in turn: [2f, …] becomes the gate over the up projection."""

    def forward(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Take the even rows, then the odd ones."""
        (rows,) = tensors
        return torch.cat([rows[0::2], rows[1::2]])

    def backward(self, whole: torch.Tensor) -> list[torch.Tensor]:
        """Return the rows in turn."""
        return [torch.stack(whole.chunk(2), 1).flatten(0, 1)]


@dataclass(frozen=True)
class QueryKeyValue:
    """Q, K and V interleaved by query group: each group's queries, then its key, then its value.

    With an output gate the published q_proj has, for each head, its query and then its gate;
    Megatron has all queries of a group, then all their gates. Biases go the same way.
    """

    heads: int
    groups: int
    head_dim: int
    gate: bool

    @classmethod
    def of(cls, attention: Attention) -> QueryKeyValue:
        """Take the sizes of a model's attention."""
        return cls(
            attention.heads, attention.query_groups, attention.head_dim, attention.output_gate
        )

    def share(self, count: int) -> QueryKeyValue:
        """Return the transform of one of `count` equal parts of the groups."""
        return replace(self, heads=self.heads // count, groups=self.groups // count)

    def forward(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Interleave [Q, K, V]."""
        queries, keys, values = tensors
        width = queries.shape[1:]
        parts = 1 + self.gate
        # [group, head of the group, query or gate, row of the head, …] → query or gate first
        grouped = queries.reshape(self.groups, -1, parts, self.head_dim, *width).transpose(1, 2)
        rows = [
            grouped.reshape(self.groups, -1, *width),
            keys.reshape(self.groups, self.head_dim, *width),
            values.reshape(self.groups, self.head_dim, *width),
        ]
        return torch.cat(rows, 1).reshape(-1, *width)

    def backward(self, whole: torch.Tensor) -> list[torch.Tensor]:
        """Return [Q, K, V]."""
        width = whole.shape[1:]
        parts = 1 + self.gate
        queries = self.heads // self.groups * self.head_dim * parts
        rows = whole.reshape(self.groups, queries + 2 * self.head_dim, *width)
        query, key, value = rows.split([queries, self.head_dim, self.head_dim], 1)
        query = query.reshape(self.groups, parts, -1, self.head_dim, *width).transpose(1, 2)
        return [
            query.reshape(-1, *width),
            key.reshape(-1, *width),
            value.reshape(-1, *width),
        ]


@dataclass(frozen=True)
class DeltaNetInput:
    """The gated delta net's projections: in_proj_qkvz and in_proj_ba become in_proj.

    Published, by key head: its query, key, values and gates z; apart, its betas and alphas.
    Megatron has all queries, all keys, all values, all z, all betas, all alphas.
    """

    key_heads: int
    sizes: tuple[int, ...]  # rows a key head: query, key, values, z, betas, alphas

    @classmethod
    def of(cls, net: LinearAttention) -> DeltaNetInput:
        """Take the sizes of a model's linear attention."""
        share = net.value_heads // net.key_heads
        values = share * net.value_dim
        return cls(net.key_heads, (net.key_dim, net.key_dim, values, values, share, share))

    def forward(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Regroup [in_proj_qkvz, in_proj_ba]."""
        width = tensors[0].shape[1:]
        parts = [
            *tensors[0].reshape(self.key_heads, -1, *width).split(self.sizes[:4], 1),
            *tensors[1].reshape(self.key_heads, -1, *width).split(self.sizes[4:], 1),
        ]
        return torch.cat([part.reshape(-1, *width) for part in parts])

    def backward(self, whole: torch.Tensor) -> list[torch.Tensor]:
        """Return [in_proj_qkvz, in_proj_ba]."""
        width = whole.shape[1:]
        parts = [
            part.reshape(self.key_heads, -1, *width)
            for part in whole.split([self.key_heads * size for size in self.sizes])
        ]
        return [
            torch.cat(parts[:4], 1).reshape(-1, *width),
            torch.cat(parts[4:], 1).reshape(-1, *width),
        ]


@dataclass(frozen=True)
class Concatenated:
    """Matrices joined along their rows; these are the numbers of rows."""

    sizes: tuple[int, ...]

    def forward(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Concatenate along the rows."""
        return torch.cat(list(tensors))

    def backward(self, whole: torch.Tensor) -> list[torch.Tensor]:
        """Return each."""
        return list(whole.split(self.sizes))


@dataclass(frozen=True)
class ZeroCentred:
    """A norm's weight around one becomes one around zero.

    In float32, which holds w - 1 exactly for every bfloat16 w of 2^-16 and above; bfloat16 does not
    below 0.5. The parameter is therefore stored in float32, and Megatron rounds when it loads it.
    """

    def forward(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Subtract one."""
        return tensors[0].float() - 1

    def backward(self, whole: torch.Tensor) -> list[torch.Tensor]:
        """Add one."""
        return [whole.float() + 1]


@dataclass(frozen=True)
class PadRows:
    """The rows of the vocabulary, with zeros up to Megatron's padded size."""

    rows: int  # published

    padded: int

    def forward(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Add the rows that only Megatron has."""
        (rows,) = tensors
        missing = self.padded - len(rows)
        return torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])]) if missing else rows

    def backward(self, whole: torch.Tensor) -> list[torch.Tensor]:
        """Leave the padding rows out."""
        return [whole[: self.rows]]


Transform = Union[
    Copy, Stack, Alternating, QueryKeyValue, DeltaNetInput, Concatenated, ZeroCentred, PadRows
]
