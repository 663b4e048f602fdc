"""Checkpoint conversion between Hugging Face safetensors and Megatron-Core, tensor by tensor."""
