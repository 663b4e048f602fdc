"""The CPU device in this process: what PyTorch answers, and its modules against plain torch."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="the training extra is not installed")
pytest.importorskip("megatron.training", reason="the training extra is not installed")

from launcher.megatron import cpu_device, cpu_modules  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def _device() -> None:
    cpu_device.install()


@pytest.mark.parametrize("device", ["cuda", "cuda:1", 0, torch.device("cuda", 0)])
def test_tensors_land_on_the_cpu(device) -> None:
    made = [
        torch.zeros(2, device=device),
        torch.tensor([1.0, 2.0], device=device),
        torch.empty_like(torch.ones(2), device=device),
        torch.ones(2).new_zeros(2, device=device),
        torch.ones(2).to(device),
        torch.ones(2).to(device=device, dtype=torch.bfloat16),
        torch.nn.Linear(2, 2).to(device).weight,
    ]
    assert {tensor.device.type for tensor in made} == {"cpu"}


def test_tensors_elsewhere_stay_elsewhere() -> None:
    with torch.device("meta"):
        assert torch.zeros(2).device.type == "meta"
    assert torch.zeros(2, device="meta").device.type == "meta"
    assert torch.ones(2).to(torch.int32).dtype == torch.int32


def test_a_moved_tensor_is_the_same_one() -> None:
    tensor = torch.ones(2)
    assert tensor.cuda() is tensor
    assert tensor.pin_memory() is tensor
    assert tensor.bfloat16().type() == "torch.cuda.BFloat16Tensor"
    assert tensor.type(torch.float64).dtype == torch.float64


def test_random_state_is_forked_and_restored() -> None:
    from megatron.core.tensor_parallel.random import CudaRNGStatesTracker

    tracker = CudaRNGStatesTracker()
    torch.manual_seed(1)
    tracker.add("expert", 7)
    outside = torch.rand(4)
    torch.manual_seed(1)
    with tracker.fork("expert"):
        inside = torch.rand(4, device="cuda")
    assert torch.equal(torch.rand(4), outside)
    torch.manual_seed(7)
    assert torch.equal(torch.rand(4), inside)


def test_events_measure_time() -> None:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    end.record(torch.cuda.current_stream())
    assert start.elapsed_time(end) >= 0


@pytest.mark.parametrize("decoupled", [True, False])
def test_adam_is_torchs(decoupled: bool) -> None:
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Linear(3, 3) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    settings = {"lr": 0.1, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    reference = torch.optim.AdamW if decoupled else torch.optim.Adam
    optimizers = (
        cpu_modules.FusedAdam(ours.parameters(), adam_w_mode=decoupled, **settings),
        reference(theirs.parameters(), **settings),
    )
    for _ in range(3):
        x = torch.rand(2, 3)
        for model, optimizer in zip((ours, theirs), optimizers):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
    assert optimizers[0].param_groups[0]["step"] == 3
    for parameter, expected in zip(ours.parameters(), theirs.parameters()):
        torch.testing.assert_close(parameter, expected)


def _config(**changes):
    from megatron.core.transformer import TransformerConfig

    return TransformerConfig(
        num_layers=1, hidden_size=32, num_attention_heads=4, attention_dropout=0.0, **changes
    )


def _attention(changes: dict, groups: SimpleNamespace):
    """Megatron's local attention, of four heads of 8, as the CPU device has it."""
    from megatron.core import parallel_state
    from megatron.core.transformer.dot_product_attention import DotProductAttention
    from megatron.core.transformer.enums import AttnMaskType

    parallel_state.destroy_global_memory_buffer()
    parallel_state._set_global_memory_buffer()
    config = _config(num_query_groups=2, masked_softmax_fusion=False, **changes)
    attention = DotProductAttention(config, 1, AttnMaskType.causal, "self", pg_collection=groups)
    attention.config.sequence_parallel = True  # Megatron's own then draws no random numbers
    return attention.eval()


VARIANTS = [
    {},
    {"softmax_type": "learnable"},
    {"window_size": (2, 0)},
    {"softmax_type": "learnable", "window_size": (2, 0)},
]


@pytest.mark.parametrize("changes", VARIANTS)
def test_attention_is_megatrons_local_one(changes: dict) -> None:
    attention = _attention(changes, SimpleNamespace(tp=SimpleNamespace(size=lambda: 1)))
    query, key, value = torch.rand(6, 2, 4, 8), torch.rand(6, 2, 2, 8), torch.rand(6, 2, 2, 8)
    mask = torch.ones(6, 6, dtype=torch.bool).triu(1)[None, None]
    found = {}
    for name, forward in (
        ("theirs", type(attention).forward.__wrapped__),
        ("ours", type(attention).forward),
    ):
        given = query.clone().requires_grad_()
        result = forward(attention, given, key, value, mask)
        wanted = [given, *attention.parameters()]
        found[name] = [result, *torch.autograd.grad(result.square().sum(), wanted)]
    torch.testing.assert_close(found["ours"], found["theirs"])
    assert len(found["ours"]) == (3 if "softmax_type" in changes else 2)


@pytest.mark.parametrize("changes", VARIANTS)
def test_attention_with_context_parallelism(changes: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four chunks of a sequence, one rank has the first and the last, the other those between."""
    from megatron.core.tensor_parallel import mappings

    whole = [torch.rand(8, 2, heads, 8) for heads in (4, 2, 2)]
    attention = _attention(changes, SimpleNamespace(tp=SimpleNamespace(size=lambda: 1)))
    expected = attention(*whole, None)
    parts = torch.tensor([[0, 1, 6, 7], [2, 3, 4, 5]])
    gathered = torch.cat(whole[1:], -1)[parts.flatten()]
    monkeypatch.setattr(
        mappings, "gather_from_sequence_parallel_region", lambda part, group: gathered
    )
    attention.config.context_parallel_size = 2
    for rank, own in enumerate(parts):
        group = SimpleNamespace(size=lambda: 2, rank=lambda rank=rank: rank)
        attention.pg_collection = SimpleNamespace(cp=group)
        found = attention(*(tensor[own] for tensor in whole), None)
        torch.testing.assert_close(found, expected[own])


def test_experts_add_their_bias_before_the_clamp() -> None:
    """As Transformer Engine's grouped layer does, and as Megatron where nothing is fused."""
    from megatron.core.transformer import mlp

    rows, bias, weights = torch.randn(5, 12), torch.randn(12), torch.rand(5, 1)
    with torch.compiler.set_stance("force_eager"):
        found = mlp.weighted_bias_quick_geglu_impl(rows, bias, weights, False, 1.0, 0.7)
    gate, up = (rows + bias).chunk(2, -1)
    gate, up = gate.clamp(max=0.7), up.clamp(-0.7, 0.7)
    torch.testing.assert_close(found, gate * torch.sigmoid(1.702 * gate) * (up + 1) * weights)


@pytest.mark.parametrize("normalization", ["RMSNorm", "LayerNorm"])
def test_zero_centered_norm_starts_as_the_plain_one(normalization: str) -> None:
    from megatron.core.transformer.torch_norm import WrappedTorchNorm

    plain = WrappedTorchNorm(_config(normalization=normalization), 8)
    centered = WrappedTorchNorm(
        _config(normalization=normalization, layernorm_zero_centered_gamma=True), 8
    )
    x = torch.rand(3, 8)
    assert not centered.weight.any()
    torch.testing.assert_close(centered(x), plain(x))


def test_convolution_sees_no_later_token() -> None:
    x, weight = torch.rand(1, 5, 3), torch.rand(3, 4)
    before, _ = cpu_modules._causal_conv1d(x, weight)
    x[:, -1] += 1
    after, _ = cpu_modules._causal_conv1d(x, weight)
    assert torch.equal(before[:, :-1], after[:, :-1])
    assert not torch.equal(before[:, -1], after[:, -1])


def test_recomputed_output_returns_under_the_tensor() -> None:
    from megatron.core.tensor_parallel import random

    output, again = torch.rand(4), torch.rand(4)
    view, version = output.view(2, 2), output._version
    output.untyped_storage().resize_(0)
    random._get_share_storage()(output, again)
    assert torch.equal(view.flatten(), again)
    assert output._version == version
