"""A stand-in for Transformer Engine, which needs a GPU: its modules' parameters, no arithmetic.

The peers of convert_peers.py build Megatron's model of Transformer Engine's modules before they
fill it. Here these are containers of parameters with the same names and shapes; everything else of
the package can be imported and refuses to be called.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import sys
import types
from typing import Any

import torch

PACKAGES = ("transformer_engine", "transformer_engine_torch")
VERSION = "2.8.0"
SUBMODULES = ("attention", "fp8", "module", "ops", "optimizers", "tensor")  # named in passing


class Module(torch.nn.Module):
    """What all have: an extra state without FP8, and no forward pass."""

    fp8 = fp8_calibration = False

    def __init__(self, dtype: torch.dtype | None, device: Any, **shapes: tuple[int, ...]):
        super().__init__()
        self.fp8_meta = {"fp8_checkpoint": False, "recipe": None}
        self.use_bias = any(name.startswith("bias") for name in shapes)
        for name, shape in shapes.items():
            made = torch.nn.Parameter(torch.empty(shape, dtype=dtype, device=device))
            self.register_parameter(name, made)

    def init_fp8_metadata(self, num_gemms: int = 1) -> None:
        """There is none."""

    def set_tensor_parallel_group(self, group: Any) -> None:
        """Nothing communicates."""

    def get_extra_state(self) -> torch.Tensor:
        """Return what Transformer Engine does without FP8."""
        return torch.empty(0, dtype=torch.uint8)

    def set_extra_state(self, state: Any) -> None:
        """Nothing is kept."""


class Linear(Module):
    """A linear layer, whole: the benchmark has one rank."""

    def __init__(self, in_features: int, out_features: int, *, bias: bool = True, eps: float = 0.0,
                 normalization: str = "", params_dtype=None, device="cuda", **_: Any):  # fmt: skip
        shapes: dict[str, tuple[int, ...]] = {"weight": (out_features, in_features)}
        if bias:
            shapes["bias"] = (out_features,)
        if normalization:
            shapes["layer_norm_weight"] = (in_features,)
        super().__init__(params_dtype, device, **shapes)


class LayerNormLinear(Linear):
    """A norm and a linear layer in one."""


class GroupedLinear(Module):
    """The experts of a rank."""

    def __init__(self, num_gemms: int, in_features: int, out_features: int, *, bias: bool = True,
                 params_dtype=None, device="cuda", **_: Any):  # fmt: skip
        shapes = {f"weight{number}": (out_features, in_features) for number in range(num_gemms)}
        if bias:
            shapes.update({f"bias{number}": (out_features,) for number in range(num_gemms)})
        super().__init__(params_dtype, device, **shapes)
        self.num_gemms = num_gemms


class RMSNorm(Module):
    """A norm, which has no extra state."""

    def __init__(self, size: int = 0, eps: float = 0.0, *, sequence_parallel: bool = False,
                 params_dtype=None, device="cuda", **given: Any):  # fmt: skip
        size = given.get("normalized_shape", given.get("hidden_size", size))
        super().__init__(params_dtype, device, weight=(size,))
        self.weight.sequence_parallel = sequence_parallel

    get_extra_state = torch.nn.Module.get_extra_state
    set_extra_state = torch.nn.Module.set_extra_state


class DotProductAttention(Module):
    """The attention itself, without parameters."""

    def __init__(self, *_: Any, **__: Any):
        super().__init__(None, None)


class CudaRNGStatesTracker:
    """Random states, none of which is drawn from."""

    def __init__(self, *_: Any, **__: Any):
        self.states_: dict = {}

    def reset(self) -> None:
        """Forget them."""
        self.states_ = {}

    def set_states(self, states: dict) -> None:
        """Take others."""
        self.states_ = states

    def add(self, name: str, seed: int) -> None:
        """Take one more."""


class DelayedScaling:
    """A recipe that nobody follows here; Megatron's configuration names it."""


KNOWN: dict[str, dict[str, Any]] = {
    "transformer_engine": {"__version__": VERSION},
    "transformer_engine.pytorch": {
        "Linear": Linear, "LayerNormLinear": LayerNormLinear, "GroupedLinear": GroupedLinear,
        "RMSNorm": RMSNorm, "LayerNorm": RMSNorm, "DotProductAttention": DotProductAttention,
        "TransformerLayer": Module,
    },
    "transformer_engine.pytorch.distributed": {
        "CudaRNGStatesTracker": CudaRNGStatesTracker,
        "is_fp8_activation_recompute_enabled": lambda: False,
    },
    "transformer_engine.pytorch.cpu_offload": {
        "get_cpu_offload_context": lambda *_, **__: (contextlib.nullcontext(), None),
    },
    "transformer_engine.common.recipe": {
        "DelayedScaling": DelayedScaling,
        "Format": types.SimpleNamespace(E4M3="e4m3", HYBRID="hybrid"),
    },
}  # fmt: skip


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if fullname.split(".")[0] in PACKAGES:
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return types.ModuleType(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        module.__path__ = []
        module.__dict__.update(KNOWN.get(module.__name__, {}))
        module.__getattr__ = lambda name: _absent(module, name)  # type: ignore[method-assign]


def _absent(module: types.ModuleType, name: str) -> Any:
    """Return a submodule, or a class that can be named and not made."""
    if name.startswith("__"):
        raise AttributeError(name)
    if f"{module.__name__}.{name}" in sys.modules:
        return sys.modules[f"{module.__name__}.{name}"]

    def refuse(*_: Any, **__: Any) -> Any:
        raise NotImplementedError(f"{module.__name__}.{name} is not there: this is a stand-in")

    made = type(name, (), {"__init__": refuse, "apply": staticmethod(refuse)})
    setattr(module, name, made)
    return made


def install() -> None:
    """Let `import transformer_engine` find this."""
    sys.meta_path.insert(0, _Finder())
    for name in (*KNOWN, *(f"transformer_engine.pytorch.{name}" for name in SUBMODULES)):
        importlib.import_module(name)
