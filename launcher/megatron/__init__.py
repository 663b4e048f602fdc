"""The only code that imports megatron: the training entry and the CPU device."""
