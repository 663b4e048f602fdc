"""What one layer of a job's real model saves for the backward pass, counted at its real size.

    python tests/tools/count_saved.py < jobs.jsonl > counted.jsonl

A line in is a job as launcher/megatron/verify.py reads it, with "further" arguments that its
replacements do not touch; a line out is {"name": …, "saved": {"dense": {"total": bytes, "tensors":
[[shape, type, bytes, line], …]}, "MoE": …}}: of a layer of each kind, of the "block" of all layers
with full recomputation, and of the whole "model" with MTP. The layers are Megatron's own, on the meta device: tensors have
shapes and storages, but no data. A storage counts once, however many operations save it, and with
what is left of it behind the layer's forward pass; parameters do not count.

Where Megatron's local modules save something else than the kernels of a GPU job, these stand in:
flash attention and the copy of the value that Transformer Engine hands it, its norm, its rotation
(`stand_in`); and of a gated delta net those of flash-linear-attention, and torch.compile's.
"""

from __future__ import annotations

import json
import os
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:] = [*(p for p in sys.path if p != str(Path(__file__).parent)), str(ROOT)]

from launcher.megatron import verify  # noqa: E402


def stand_in() -> None:  # noqa: C901 (one replacement after the other)
    """Replace the kernels whose saved tensors differ from Transformer Engine's."""
    import torch
    from megatron.core.models.common.embeddings import rope_utils
    from megatron.core.ssm.gated_delta_net import common, gdn
    from megatron.core.transformer.dot_product_attention import DotProductAttention
    from megatron.core.transformer.moe.experts import SequentialMLP
    from megatron.core.transformer.torch_norm import WrappedTorchNorm

    class Flash(torch.autograd.Function):
        """Saves its inputs, its output and the logarithm of the softmax's sum, as flash does."""

        @staticmethod
        def forward(ctx: Any, query: Any, key: Any, value: Any) -> Any:
            output = query.new_empty(*query.shape[:-1], value.shape[-1])
            sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
            ctx.save_for_backward(query, key, value, output, sums)
            return output

        @staticmethod
        def backward(ctx: Any, gradient: Any) -> Any:
            query, key, value, *_ = ctx.saved_tensors
            return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)

    def attention(self: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        output = Flash.apply(query, key, value.contiguous())
        return output.reshape(*output.shape[:2], -1)

    class Normed(torch.autograd.Function):
        """Saves its input and one number for every row, as a fused norm does."""

        @staticmethod
        def forward(ctx: Any, x: Any, weight: Any) -> Any:
            x = x.contiguous()
            ctx.save_for_backward(x, weight, x.new_empty(x.shape[:-1], dtype=torch.float32))
            return torch.empty_like(x)

        @staticmethod
        def backward(ctx: Any, gradient: Any) -> Any:
            return gradient, ctx.saved_tensors[1]

    class Norm(torch.nn.Module):
        def __init__(self, config: Any, hidden_size: int, eps: float = 1e-5, **kwargs: Any):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.empty(hidden_size, dtype=config.params_dtype))

        def forward(self, x: Any) -> Any:
            return Normed.apply(x, self.weight)

    class Kept(torch.autograd.Function):
        """Saves the tensors among its arguments; returns one like the first."""

        @staticmethod
        def forward(ctx: Any, *tensors: Any) -> Any:
            ctx.save_for_backward(*tensors)
            return torch.empty(tensors[0].shape, dtype=tensors[0].dtype, device="meta")

        @staticmethod
        def backward(ctx: Any, gradient: Any) -> Any:
            return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors)

    class Unit(torch.autograd.Function):
        """Saves its output and one number for every row, as fla's l2norm does."""

        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            output = torch.empty_like(x)
            ctx.save_for_backward(output, x.new_empty(x.shape[:-1], dtype=torch.float32))
            return output

        @staticmethod
        def backward(ctx: Any, gradient: Any) -> Any:
            return gradient

    def convolution(x: Any, weight: Any, bias: Any = None, **kwargs: Any) -> Any:
        return Kept.apply(x, weight), None

    def delta_rule(query: Any, key: Any, value: Any, g: Any, beta: Any, **kwargs: Any) -> Any:
        inner = value.new_empty(*value.shape[:3], 64)
        return Kept.apply(value, query, key, g, beta, inner), None

    def gated_norm(self: Any, x: Any, gate: Any) -> Any:
        # Compiled on a GPU: one kernel behind the norm, which reads the normed output and the gate.
        return Kept.apply(self.out_norm(x.reshape(-1, x.shape[-1])), gate)

    class Turned(torch.autograd.Function):
        """A rotation: of its inputs, it saves the angles alone, which all layers share."""

        @staticmethod
        def forward(ctx: Any, x: Any, angles: Any) -> Any:
            return x.new_empty(x.shape)

        @staticmethod
        def backward(ctx: Any, gradient: Any) -> Any:
            return gradient, None

    rope_utils._apply_rotary_pos_emb_bshd = lambda x, angles, **kwargs: Turned.apply(x, angles)
    common.l2norm, gdn.causal_conv1d, gdn.chunk_gated_delta_rule = (
        Unit.apply,
        convolution,
        delta_rule,
    )
    common._GDNBase._apply_gated_norm = gated_norm

    def even(self: Any, hidden: Any, tokens_per_expert: Any, probabilities: Any) -> Any:
        # Without data nobody knows how many tokens an expert gets: with a capacity, all as many.
        each = hidden.shape[0] // self.num_local_experts
        counts = torch.full((self.num_local_experts,), each, device="cpu")
        return experts(self, hidden, counts, probabilities)

    experts = SequentialMLP.forward
    SequentialMLP.forward = even
    WrappedTorchNorm.__new__ = staticmethod(lambda cls, *args, **kwargs: Norm(*args, **kwargs))
    DotProductAttention.forward = attention


def saved(run: Any, owned: Any) -> dict[str, Any]:
    """What autograd holds after the call, of the storages that are none of `owned`."""
    import torch

    known = {one.untyped_storage()._cdata for one in owned}
    storages: dict[int, tuple[Any, list]] = {}

    def pack(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            # Held, so that no later storage gets its address.
            facts = [list(tensor.shape), str(tensor.dtype).replace("torch.", ""), 0, _caller()]
            storages.setdefault(storage._cdata, (storage, facts))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = run()
    for storage, facts in storages.values():
        facts[2] = storage.nbytes()
    del output
    tensors = sorted((facts for _, facts in storages.values() if facts[2]), key=lambda f: -f[2])
    return {"total": sum(facts[2] for facts in tensors), "tensors": tensors}


def _caller() -> str:
    """The line of Megatron, or of a stand-in, that saves."""
    frame = sys._getframe(2)
    while frame and not ("/megatron/" in frame.f_code.co_filename and "/torch/" not in frame.f_code.co_filename):  # fmt: skip
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}" if frame else ""


def _runnable(argv: list[str]) -> list[str]:
    """The words without what VERIFY builds and nothing here can run, and what `further` decides."""
    words, skipping = [], False
    for word in argv:
        if word.startswith("--"):
            skipping = word in verify.BUILT_ANYWAY or word.startswith("--recompute-")
        if not skipping:
            words.append(word)
    return words


def count(job: verify.Candidate, further: list[str]) -> dict[str, Any]:
    """Build the job's model in this process and run a layer of each kind."""
    import torch
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
    from megatron.training.argument_utils import gpt_config_from_args
    from megatron.training.models.gpt import GPTModelBuilder

    from launcher.megatron.gpt import allow_mtp_with_attention_variants

    words = [*_runnable(verify.replace(job.argv)), *further]
    verify._become(job, 0, words)
    args = verify._parse()
    verify._validate(args)
    verify._group(args)
    stand_in()
    config = gpt_config_from_args(args)
    config.transformer.perform_initialization = False
    if job.own_training:
        allow_mtp_with_attention_variants()
    model_parallel_cuda_manual_seed(args.seed)
    torch.cuda.current_device = lambda: torch.device("meta")
    with torch.device("meta"):
        groups = ProcessGroupCollection.use_mpu_process_groups()
        model = GPTModelBuilder(config).build_model(groups).to(torch.bfloat16)
    tokens = args.seq_length // args.context_parallel_size
    own = tokens // (args.tensor_model_parallel_size if args.sequence_parallel else 1)
    torch.cuda.default_generators = defaultdict(lambda: torch.default_generator)
    rotary = None
    if not args.multi_latent_attention:
        width = int(args.kv_channels * args.rotary_percent)
        rotary = torch.empty(tokens, 1, 1, width, device="meta")
    size = (own, args.micro_batch_size, args.hidden_size)
    hidden = torch.empty(size, dtype=torch.bfloat16, device="meta", requires_grad=True)

    def run(part: Any) -> dict[str, Any]:
        owned = [*model.parameters(), *model.buffers(), *([] if rotary is None else [rotary])]
        call = {"attention_mask": None, "rotary_pos_emb": rotary}
        return saved(lambda: part(hidden_states=hidden, **call), owned)

    if args.recompute_granularity == "full":
        return {"block": run(model.decoder)}
    if args.mtp_num_layers:
        words = torch.zeros(args.micro_batch_size, tokens, dtype=torch.long, device="meta")
        owned = [*model.parameters(), *model.buffers(), words]
        call = {"position_ids": words, "attention_mask": None, "labels": words}
        loss_mask = torch.ones(words.shape, device="meta")
        return {"model": saved(lambda: model(words, loss_mask=loss_mask, **call), owned)}
    found = {}
    for layer in model.decoder.layers:
        kind = "MoE" if hasattr(layer.mlp, "experts") else "dense"
        if "Gated" in type(layer.self_attention).__name__:
            kind = f"linear {kind}"
        if kind not in found:
            found[kind] = run(layer)
    return found


def main() -> None:
    """Count for the jobs of standard input; write a line each."""
    verify._prepare_megatron()
    for line in sys.stdin:
        fields = json.loads(line)
        further = fields.pop("further", [])
        job = verify.read(json.dumps(fields))

        def work(job: verify.Candidate = job, further: list[str] = further) -> dict:
            return {"saved": count(job, further)}

        connection, process = verify._fork(work)
        try:
            reply = connection.recv()
        except EOFError:
            reply = {"message": "the process died"}
        os.waitpid(process, 0)
        print(json.dumps({"name": job.name, **reply}), flush=True)


if __name__ == "__main__":
    main()
