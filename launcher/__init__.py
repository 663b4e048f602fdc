"""Turn a model, a cluster and a few variables into a Megatron-Core training job."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]  # of the repository
