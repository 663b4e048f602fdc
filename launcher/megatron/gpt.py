"""GPT pretraining with Megatron's own loop, where there is no pretrain_gpt.py to run.

megatron-core[training] brings the model builder, the data sets and the loop; what a training
script adds is which data each rank reads, the forward step and the loss.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import lru_cache, partial
from typing import Any

import torch
from megatron.core import mpu
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig, MockGPTDataset
from megatron.core.enums import ModelType
from megatron.core.models.gpt.experimental_attention_variant_module_specs import (
    get_transformer_layer_with_experimental_attention_variant_spec,
)
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_mtp_block_spec
from megatron.core.rerun_state_machine import get_rerun_state_machine
from megatron.core.tokenizers.utils.build_tokenizer import build_tokenizer
from megatron.core.transformer.multi_token_prediction import get_mtp_ranks, mtp_on_this_rank
from megatron.core.utils import get_attr_wrapped_model, get_batch_on_this_cp_rank, get_model_config
from megatron.training import get_args, get_timers, pretrain, set_startup_timestamps
from megatron.training.argument_utils import (
    core_transformer_config_from_args,
    gpt_config_from_args,
    pretrain_cfg_container_from_args,
)
from megatron.training.arguments import parse_and_validate_args
from megatron.training.models import gpt as builder
from megatron.training.utils import get_blend_and_blend_per_split, is_first_or_last_pipeline_stage

_BATCH = ("tokens", "labels", "loss_mask", "attention_mask", "position_ids")


def train(started: float) -> None:
    """Train the model that sys.argv describes; the process started then, in epoch seconds."""
    set_startup_timestamps(program_start=started, main_entry=time.time())
    args = parse_and_validate_args()
    allow_mtp_with_attention_variants()
    datasets.is_distributed = True  # every rank builds its own, nothing is broadcast
    pretrain(
        pretrain_cfg_container_from_args(args, gpt_config_from_args(args)),
        datasets,
        ModelType.encoder_or_decoder,
        forward_step,
        get_embedding_ranks=embedding_ranks,
    )


def allow_mtp_with_attention_variants() -> None:
    """Let Megatron's model builder combine MTP with `--experimental-attention-variant`.

    The builder asks a function for the MTP layer that refuses every attention variant; Megatron's
    gpt_builders.py, which older and newer pretrain_gpt.py use, asks the one that knows them.
    """
    refusing = builder.mtp_block_spec

    def mtp_block_spec(config: Any, decoder: Any, vp_stage: int | None = None) -> Any:
        transformer = config.transformer
        if transformer.mtp_num_layers is None or transformer.experimental_attention_variant is None:
            return refusing(config, decoder, vp_stage)
        # MTP repeats the decoder's last layer, which this stage need not hold itself.
        layers = get_transformer_layer_with_experimental_attention_variant_spec(config=transformer)
        engine = transformer.transformer_impl == "transformer_engine"
        return get_gpt_mtp_block_spec(transformer, layers[-1], engine, vp_stage=vp_stage)

    builder.mtp_block_spec = mtp_block_spec


@lru_cache(maxsize=1)
def _config() -> Any:
    """The transformer's configuration, for what is decided before the model exists."""
    return core_transformer_config_from_args(get_args())


def reads_data(config: Any, vp_stage: int | None) -> bool:
    """Whether this model chunk embeds tokens or computes a loss, of the model or of MTP."""
    return is_first_or_last_pipeline_stage(vp_stage) or mtp_on_this_rank(
        layout=config.pipeline_model_parallel_layout,
        mtp_num_layers=config.mtp_num_layers,
        ignore_virtual=False,
        vp_stage=vp_stage,
    )


def embedding_ranks(pipeline: list[int]) -> list[int]:
    """The ranks of a pipeline that hold word embeddings: the first, MTP's, and the last if tied."""
    ranks = {pipeline[0]}
    if len(pipeline) > 1:
        ranks.update(get_mtp_ranks(pipeline, _config()))
        if not get_args().untie_embeddings_and_output_weights:
            ranks.add(pipeline[-1])
    return sorted(ranks)


def datasets(samples: list[int], vp_stage: int | None = None) -> tuple[Any, Any, Any]:
    """The training, validation and test sets for these numbers of samples."""
    args = get_args()
    blend, blend_per_split = get_blend_and_blend_per_split(args)
    config = GPTDatasetConfig(
        random_seed=args.seed,
        sequence_length=args.seq_length,
        blend=blend,
        blend_per_split=blend_per_split,
        split=args.split,
        num_dataset_builder_threads=args.num_dataset_builder_threads,
        path_to_cache=args.data_cache_path,
        mmap_bin_files=args.mmap_bin_files,
        tokenizer=build_tokenizer(args),
        reset_position_ids=args.reset_position_ids,
        reset_attention_mask=args.reset_attention_mask,
        eod_mask_loss=args.eod_mask_loss,
        create_attention_mask=args.create_attention_mask_in_dataloader,
        object_storage_cache_path=args.object_storage_cache_path,
        context_parallel_size=args.context_parallel_size,
        data_parallel_size=args.data_parallel_size,
        sequence_parallel_size=args.tensor_model_parallel_size * args.sequence_parallel,
    )
    kind = MockGPTDataset if args.mock_data else GPTDataset
    reads = partial(reads_data, _config(), vp_stage)
    return BlendedMegatronDatasetBuilder(kind, samples, reads, config).build()


def get_batch(batches: Iterator[dict[str, Any]]) -> dict[str, Any]:
    """The next micro-batch on this rank's device: its part of the sequence under CP."""
    batch = next(batches)
    batch = {key: batch[key].cuda(non_blocking=True) for key in _BATCH if key in batch}
    return get_batch_on_this_cp_rank(
        batch, is_hybrid_cp=False, cp_group=mpu.get_context_parallel_group()
    )


def forward_step(
    batches: Iterator[dict[str, Any]], model: Any, return_schedule_plan: bool = False
) -> tuple[Any, Any]:
    """Run one micro-batch through the model's chunk; returns its output and the loss function."""
    timer = get_timers()("batch-generator", log_level=2)
    timer.start()
    batch: dict[str, Any] = {}
    if reads_data(get_model_config(model), get_attr_wrapped_model(model, "vp_stage")):
        batch = get_batch(batches)
    timer.stop()
    run = get_attr_wrapped_model(model, "build_schedule_plan") if return_schedule_plan else model
    inputs = (batch.get(key) for key in ("tokens", "position_ids", "attention_mask"))
    loss_mask = batch.get("loss_mask")
    output = run(*inputs, labels=batch.get("labels"), loss_mask=loss_mask)
    return output, partial(loss, loss_mask)


def loss(mask: torch.Tensor, losses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, dict]:
    """Sum of the unmasked tokens' losses, their number, and both as Megatron logs them."""
    total = torch.sum(losses.view(-1).float() * mask.view(-1).float())
    tokens = mask.sum().detach().to(torch.int)
    if get_args().check_for_nan_in_loss_and_grad:
        for is_bad, name in ((torch.isnan, "NaN"), (torch.isinf, "Inf")):
            get_rerun_state_machine().validate_result(
                result=total,
                rejection_func=is_bad,
                message=f"{name} in the loss of a micro-batch",
                tolerance=0.0,
                fatal=True,
            )
    return total, tokens, {"lm loss": torch.stack((total.detach(), tokens.float()))}
