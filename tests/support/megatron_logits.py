"""Logits of real Megatron models from checkpoints, on the CPU.

    python megatron_logits.py RANKS CASES

One process imports torch and Megatron and forks the ranks, as imports cost more than tiny models.
CASES is a JSON file: [{"argv": [Megatron's arguments], "release": "0.19", "tokens": FILE,
"out": FILE}, …]. For each case Megatron parses and validates the arguments, builds its model, loads
the checkpoint of --load and runs its own pipeline schedule over the tokens ([sequences, length], a
file of torch.save), a sequence a micro-batch. OUT then holds {"logits": [sequences, length,
vocabulary], "mtp": the same of each multi-token prediction layer}.

One start serves many cases: between them everything that Megatron keeps globally is destroyed.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    """Run every case of the file that is named on the command line; return 1 if a rank failed."""
    sys.path.append(str(ROOT))
    ranks = int(sys.argv[1])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        WORLD_SIZE=str(ranks),
        LOCAL_WORLD_SIZE=str(ranks),
    )
    from launcher.megatron import cpu_device

    cpu_device.install()
    from launcher.megatron import gpt

    gpt.allow_mtp_with_attention_variants()
    cases = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    children = [_fork(rank, cases) for rank in range(ranks)]
    failed = False
    while children:
        done, status = os.wait()
        children.remove(done)
        if status and not failed:
            failed = True
            for child in children:  # they would wait for the one that failed
                os.kill(child, signal.SIGTERM)
    return int(failed)


def _fork(rank: int, cases: list[dict[str, Any]]) -> int:
    """Start a rank; return its process."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
        _run_all(cases)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _run_all(cases: list[dict[str, Any]]) -> None:
    import torch.distributed

    for case in cases:
        started = time.monotonic()
        run(case)
        if torch.distributed.get_rank() == 0:
            print(f"{case['out']}: {time.monotonic() - started:.1f} s", flush=True)
    torch.distributed.destroy_process_group()


def run(case: dict[str, Any]) -> None:
    """Run one case; writes its OUT."""
    import torch
    from megatron.core import mpu
    from megatron.core.enums import ModelType
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.training.argument_utils import (
        gpt_config_from_args,
        pretrain_cfg_container_from_args,
    )
    from megatron.training.arguments import parse_and_validate_args
    from megatron.training.initialize import initialize_megatron
    from megatron.training.training import destroy_global_state, setup_model_and_optimizer

    from launcher.megatron import gpt

    _normalise_uncompressed_queries(case["release"] == "0.19")
    sys.argv[1:] = [*case["argv"], "--skip-train"]
    gpt._config.cache_clear()
    args = parse_and_validate_args()
    initialize_megatron(get_embedding_ranks=gpt.embedding_ranks)
    config = pretrain_cfg_container_from_args(args, gpt_config_from_args(args))
    model, _, _ = setup_model_and_optimizer(
        ModelType.encoder_or_decoder,
        cfg_container=config,
        pg_collection=ProcessGroupCollection.use_mpu_process_groups(),
    )
    for chunk in model:
        chunk.eval()
    with torch.no_grad():
        found = _logits(model, torch.load(case["tokens"]))
    if found and mpu.get_tensor_model_parallel_rank() == mpu.get_data_parallel_rank() == 0:
        torch.save(found, case["out"])
    torch.distributed.barrier()
    destroy_global_state()
    _destroy_groups()


def _destroy_groups() -> None:
    """End the case's process groups, which Megatron only forgets: each keeps a thread of gloo."""
    import torch
    from torch.distributed import distributed_c10d as c10d

    for group in [each for each in c10d._world.pg_map if each is not c10d.GroupMember.WORLD]:
        torch.distributed.destroy_process_group(group)


def _normalise_uncompressed_queries(wanted: bool) -> None:
    """Let latent attention without query compression be as in this release, or as in all others.

    0.19 alone puts a norm before that projection; up to 0.18, and on the dev branch, it is plain.
    """
    from megatron.core.transformer.mla_qk_norm_config import QKNormConfigResolver as resolver

    original = getattr(resolver, "_fused_or_default", resolver._mla_fused_linear_or_default)
    resolver._fused_or_default = original

    def plain(self: Any, module: Any, name: str) -> Any:
        return self.linear_impl if name == "linear_q_proj" else original(self, module, name)

    resolver._mla_fused_linear_or_default = original if wanted else plain


def _logits(model: list[Any], tokens: Any) -> dict[str, Any]:
    """The logits of all sequences on the last stage; an empty dictionary elsewhere.

    Without labels Megatron computes MTP's logits first and the model's own last, all through the
    output layer, which is where they are taken.
    """
    import torch
    from megatron.core.pipeline_parallel import get_forward_backward_func
    from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region
    from megatron.core.utils import unwrap_model

    seen: list[torch.Tensor] = []
    hooks = [
        chunk.output_layer.register_forward_hook(
            lambda layer, inputs, output: seen.append(
                # A copy: the loss is computed in place.
                gather_from_tensor_model_parallel_region(output[0]).transpose(0, 1).clone()
            )
        )
        for chunk in unwrap_model(model)
        if chunk.post_process
    ]
    positions = torch.arange(tokens.shape[1])[None]

    def step(batches: Any, chunk: Any) -> tuple[Any, Any]:
        output = chunk(next(batches)[None], positions, None)
        return output, lambda given: (given.sum(), {"sum": given.sum()})

    get_forward_backward_func()(
        forward_step_func=step,
        data_iterator=[iter(tokens) for _ in model] if len(model) > 1 else iter(tokens),
        model=model,
        num_microbatches=len(tokens),
        seq_length=tokens.shape[1],
        micro_batch_size=1,
        forward_only=True,
    )
    for hook in hooks:
        hook.remove()
    if not seen:
        return {}
    kinds = len(seen) // len(tokens)
    of_kind = [torch.cat(seen[kind::kinds]) for kind in range(kinds)]
    return {"logits": of_kind[-1], "mtp": of_kind[:-1]}


if __name__ == "__main__":
    sys.exit(main())
