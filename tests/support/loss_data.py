"""Data whose loss is known: every sample that Megatron draws from it is the same."""

from __future__ import annotations

from pathlib import Path

import numpy
import torch
import torch.nn.functional as F

from tests.support.tiny_models import LENGTH, PADDED_VOCABULARY, VOCABULARY, Made, mtp_logits


@torch.no_grad()
def text(made: Made) -> torch.Tensor:
    """LENGTH tokens that the model itself finds likely: its greedy continuation of one token."""
    ids = torch.tensor([[7]])
    while ids.shape[1] < LENGTH:
        ids = torch.cat((ids, made.model(ids).logits[:, -1:].argmax(-1)), dim=1)
    return ids


def write(ids: torch.Tensor, prefix: Path, copies: int = 400) -> None:
    """Write a Megatron data set of copies of one document of LENGTH tokens.

    Samples are LENGTH tokens and the one that follows, so each is the document and its first token,
    in whatever order they come.
    """
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=numpy.int32)
    for _ in range(copies):
        builder.add_item(ids[0])
        builder.end_document()
    builder.finalize(f"{prefix}.idx")


@torch.no_grad()
def losses(made: Made, ids: torch.Tensor) -> dict[str, float]:
    """transformers' losses of a sample as Megatron logs them: of the model, and of MTP.

    Megatron's softmax runs over the padded vocabulary: the padding's logits are 0.
    """
    following = torch.cat((ids[:, 1:], ids[:, :1]), dim=1)

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> float:
        padded = F.pad(logits[0], (0, PADDED_VOCABULARY - VOCABULARY))
        return F.cross_entropy(padded, labels[0]).item()

    found = {"lm loss": loss(made.model(ids).logits, following)}
    if made.mtp:
        # Of the token after the next: the last position of a sample has none.
        found["mtp_1 loss"] = loss(mtp_logits(made, ids), following[:, 1:])
    return found
