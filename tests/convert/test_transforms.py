"""The arithmetic of the transforms, each against the plainest way to write it."""

from __future__ import annotations

import torch

from launcher.convert.encodings import dequantize
from launcher.convert.transforms import Alternating, DeltaNetInput, QueryKeyValue, ZeroCentred


def test_queries_keys_and_values_by_group() -> None:
    heads, groups, dim, hidden = 6, 2, 4, 5
    q, k, v = (torch.randn(count * dim, hidden) for count in (heads, groups, groups))
    rows = []
    for group in range(groups):
        rows += [q[dim * head : dim * (head + 1)] for head in range(3 * group, 3 * group + 3)]
        rows += [part[dim * group : dim * (group + 1)] for part in (k, v)]
    join = QueryKeyValue(heads, groups, dim, gate=False)
    assert torch.equal(join.forward([q, k, v]), torch.cat(rows))
    assert all(map(torch.equal, join.backward(torch.cat(rows)), [q, k, v]))
    biases = [part[:, 0] for part in (q, k, v)]
    assert torch.equal(join.forward(biases), torch.cat(rows)[:, 0])


def test_output_gates_stand_behind_a_groups_queries() -> None:
    heads, groups, dim, hidden = 4, 2, 3, 5
    q = torch.randn(heads * 2 * dim, hidden)  # published: each head's query, then its gate
    k, v = (torch.randn(groups * dim, hidden) for _ in range(2))
    rows = []
    for group in range(groups):
        mine = (2 * group, 2 * group + 1)
        rows += [q[2 * dim * head : 2 * dim * head + dim] for head in mine]
        rows += [q[2 * dim * head + dim : 2 * dim * (head + 1)] for head in mine]
        rows += [part[dim * group : dim * (group + 1)] for part in (k, v)]
    join = QueryKeyValue(heads, groups, dim, gate=True)
    assert torch.equal(join.forward([q, k, v]), torch.cat(rows))
    assert all(map(torch.equal, join.backward(torch.cat(rows)), [q, k, v]))


def test_rows_of_gate_and_up_projection_in_turn() -> None:
    gate, up = torch.randn(2, 3, 5)
    rows = torch.stack([row for pair in zip(gate, up) for row in pair])
    assert torch.equal(Alternating().forward([rows]), torch.cat([gate, up]))
    assert torch.equal(Alternating().backward(torch.cat([gate, up]))[0], rows)
    assert torch.equal(Alternating().forward([rows[:, 0]]), torch.cat([gate, up])[:, 0])


def test_delta_net_input() -> None:
    """As transformers' fix_query_key_value_ordering takes its two projections apart."""
    key_heads, share, key_dim, value_dim = 2, 2, 3, 4
    join = DeltaNetInput(key_heads, (key_dim, key_dim, 8, 8, share, share))
    qkvz, ba = torch.randn(2 * (3 + 3 + 8 + 8), 5), torch.randn(2 * 2 * share, 5)
    a_head = qkvz.view(2, 22, 5)
    parts = [a_head[:, :3], a_head[:, 3:6], a_head[:, 6:14], a_head[:, 14:]]
    b, a = ba.view(2, 4, 5)[:, :2], ba.view(2, 4, 5)[:, 2:]
    expected = torch.cat([part.reshape(-1, 5) for part in (*parts, b, a)])
    assert value_dim * share == 8
    assert torch.equal(join.forward([qkvz, ba]), expected)
    assert all(map(torch.equal, join.backward(expected), [qkvz, ba]))


def test_zero_centred_norms_are_exact() -> None:
    """Every bfloat16 from 2^-16 to 2^16 comes back, those between 0 and 0.5 too."""
    bits = torch.arange(0x3780, 0x4780, dtype=torch.int16)
    weights = bits.view(torch.bfloat16)
    assert weights[0] == 2**-16
    centred = ZeroCentred().forward([weights])
    assert torch.equal(ZeroCentred().backward(centred)[0].to(torch.bfloat16), weights)


def test_dequantization_is_the_reference() -> None:
    """DeepSeek's weight_dequant: float32 times its block's scale, rounded to bfloat16."""
    torch.manual_seed(0)
    weight = torch.randn(260, 140).mul(50).to(torch.float8_e4m3fn)
    scales = torch.rand(3, 2) * 1e-3
    expected = torch.empty(260, 140, dtype=torch.bfloat16)
    columns = [0, 1, 127, 128, 139]
    for row in range(260):
        for column in columns:
            scale = scales[row // 128, column // 128]
            expected[row, column] = (weight[row, column].float() * scale).to(torch.bfloat16)
    found = dequantize(weight, scales)
    assert torch.equal(found.view(torch.int16)[:, columns], expected.view(torch.int16)[:, columns])
