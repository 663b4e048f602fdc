"""Unpickle without running code: tensors and plain containers are read, other objects are empty.

Checkpoints of training jobs hold their arguments as objects of Megatron's classes, which need not
be importable here. For `torch.load(…, weights_only=False, pickle_module=…)`, which wants a module.
"""

from __future__ import annotations

import pickle
from typing import Any

# What torch.save writes for tensors, besides torch's dtypes.
_KNOWN = {
    ("collections", "OrderedDict"),
    ("argparse", "Namespace"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch", "Size"),
    ("_codecs", "encode"),
}
_STORAGES = ("torch", "torch.storage")


class Idle:
    """Stand in for an object of an unknown class."""

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __reduce__(self) -> Any:
        return (Idle, ())


class Unpickler(pickle.Unpickler):
    """An unpickler that finds the classes of tensors and no other."""

    def find_class(self, module: str, name: str) -> Any:
        """Return the class, or Idle for an unknown one."""
        storage = module in _STORAGES and name.endswith("Storage")
        dtype = module == "torch" and name in _DTYPES
        if (module, name) in _KNOWN or storage or dtype:
            return super().find_class(module, name)
        return Idle


_DTYPES = ("bfloat16", "float16", "float32", "float64", "int32", "int64", "uint8", "bool")
load, loads = pickle.load, pickle.loads
