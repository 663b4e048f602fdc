"""Lets Megatron-Core train on a machine without a GPU.

`install()` makes PyTorch answer for one imaginary GPU whose memory and random state are the
CPU's, and has `cpu_modules` give Megatron what only Transformer Engine provides. The arithmetic,
the collectives (gloo) and Megatron's own code are real; overlap, memory figures and speed are not.
Where a GPU is present nothing is changed.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
import warnings
from collections import defaultdict
from types import SimpleNamespace
from typing import Any, Callable

import torch
import torch.distributed
from torch.utils._device import _device_constructors

# What says only that this is no GPU machine, or that Megatron and PyTorch are of different age.
_NOISE = (
    r".*Apex (is|are) not installed",
    r".*absl\.logging is not installed",
    r".*Only transformer-engine>=1\.7\.0 supports MoE experts",
    r".*no accelerator is found",
    r".*CUDA is not available",
    r".*The \.grad attribute of a Tensor that is not a leaf Tensor",
    r".*torch\.distributed\.\w+` is deprecated",
    r".*MimoModelConfig is experimental",
    r"`sequence_parallel` is set to `True`, but tensor model parallel size is 1",
)
_LIKE = ("empty_like", "full_like", "ones_like", "rand_like", "randint_like", "randn_like")
_NEW = ("new_empty", "new_full", "new_ones", "new_tensor", "new_zeros", "new_empty_strided")


def install() -> None:
    """Provide the CPU device to PyTorch and Megatron; call it before megatron is imported.

    The directory of the Megatron to be used must already be on sys.path. Does nothing where
    PyTorch sees a GPU.
    """
    if torch.cuda.is_available():
        return
    for message in _NOISE:
        warnings.filterwarnings("ignore", message=message)
    # On a checkpoint's load PyTorch announces its own future changes.
    warnings.filterwarnings("ignore", module=r"torch\.distributed\.checkpoint")
    _patch_cuda()
    _patch_random_state()
    _patch_tensors()
    _patch_all_to_all()
    _patch_uneven_collectives()
    _share_gloo_device()
    _skip_compilation()
    from launcher.megatron import cpu_modules

    cpu_modules.install()


class Stream:
    """A CUDA stream where every operation is finished when its call returns."""

    cuda_stream = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.device = torch.device("cpu")

    def wait_stream(self, stream: Any) -> None: ...

    def wait_event(self, event: Any) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record()
        return event

    @staticmethod
    def priority_range() -> tuple[int, int]:
        return 0, 0


class Event:
    """A CUDA event; it remembers the wall clock so that `elapsed_time` is true."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.seconds = 0.0

    def record(self, stream: Any = None) -> None:
        self.seconds = time.perf_counter()

    def wait(self, stream: Any = None) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: Event) -> float:
        """Milliseconds, as CUDA reports them."""
        return (end.seconds - self.seconds) * 1e3


def _returns(value: Any) -> Callable[..., Any]:
    """A new function that ignores its arguments and returns the value."""
    return lambda *args, **kwargs: value


def _no_context(*args: Any, **kwargs: Any) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


def _patch_cuda() -> None:
    """Make torch.cuda describe one device per local rank, with streams that do nothing."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    properties = SimpleNamespace(
        name="CPU", major=9, minor=0, total_memory=memory, multi_processor_count=os.cpu_count()
    )
    stream = Stream()
    answers = {
        "is_available": True,
        "is_initialized": True,
        "is_bf16_supported": True,
        "is_current_stream_capturing": False,
        "device_count": int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        "current_device": 0,
        "get_device_capability": (properties.major, properties.minor),
        "get_device_name": properties.name,
        "get_device_properties": properties,
        "current_stream": stream,
        "default_stream": stream,
        "check_error": None,
        "cudart": SimpleNamespace(cudaProfilerStart=_returns(0), cudaProfilerStop=_returns(0)),
        "memory_snapshot": [],
        "mem_get_info": (memory, memory),
    }
    # Nothing is counted: host memory is shared with everything else on the machine.
    for name in ("memory_allocated", "memory_reserved"):
        answers[name] = answers[f"max_{name}"] = 0
    answers["device_memory_used"] = answers["utilization"] = 0
    for name, value in answers.items():
        setattr(torch.cuda, name, _returns(value))
    torch.cuda.memory_stats = lambda *args, **kwargs: defaultdict(int)
    for name in (
        "init",
        "_lazy_init",
        "set_device",
        "set_stream",
        "synchronize",
        "empty_cache",
        "ipc_collect",
        "reset_peak_memory_stats",
        "reset_max_memory_allocated",
    ):
        setattr(torch.cuda, name, _returns(None))
    for name in ("stream", "device"):
        setattr(torch.cuda, name, _no_context)
    torch.cuda.Stream, torch.cuda.Event = Stream, Event
    torch.cuda.nvtx.range_push, torch.cuda.nvtx.range_pop = _returns(0), _returns(0)
    torch.cuda.nvtx.range = _no_context
    # PyTorch derives this from torch.cuda, yet nothing in it may believe in the device.
    torch.accelerator.is_available = _returns(False)


def _patch_random_state() -> None:
    """Make the CPU generator the CUDA device's random state, so that it is saved and forked."""
    generator = torch.default_generator
    torch.cuda.default_generators = (generator,)
    functions = {
        "get_rng_state": lambda device="cuda": generator.get_state(),
        "get_rng_state_all": lambda: [generator.get_state()],
        "set_rng_state": lambda state, device="cuda": generator.set_state(state),
        "set_rng_state_all": lambda states: generator.set_state(states[0]),
        "manual_seed": lambda seed: generator.manual_seed(int(seed)),
        "manual_seed_all": lambda seed: generator.manual_seed(int(seed)),
        "initial_seed": lambda: generator.initial_seed(),
    }
    for name, function in functions.items():
        setattr(torch.cuda, name, function)
        setattr(torch.cuda.random, name, function)
    # Megatron imports this name and sets the state of default_generators through it.
    torch.cuda._lazy_call = lambda callback, **kwargs: callback()
    for name in ("_cuda_setRNGState", "_cuda_getRNGState"):
        if hasattr(torch._C, name):
            delattr(torch._C, name)


def _cpu_for(device: Any) -> Any:
    """The CPU for anything that names a GPU (an index, "cuda:0"); everything else unchanged."""
    if isinstance(device, int) and not isinstance(device, bool):
        return "cpu"
    if isinstance(device, (str, torch.device)) and str(device).startswith("cuda"):
        return "cpu"
    return device


def _on_cpu(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with its `device` keyword turned to the CPU."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if "device" in kwargs:
            kwargs["device"] = _cpu_for(kwargs["device"])
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
        return function(*args, **kwargs)

    return wrapper


def _patch_tensors() -> None:
    """Make CPU tensors wherever a CUDA tensor is asked for.

    Wrapping the functions rather than a TorchFunctionMode: the mode is thread-local and popped
    during backward, where recomputation makes tensors too.
    """
    for function in _device_constructors():  # cached there, so torch.device("meta") still works
        name = function.__name__
        if getattr(torch, name, None) is function:
            setattr(torch, name, _on_cpu(function))
    for name in (*_LIKE, "zeros_like"):
        setattr(torch, name, _on_cpu(getattr(torch, name)))
    for name in _NEW:
        setattr(torch.Tensor, name, _on_cpu(getattr(torch.Tensor, name)))

    to, type_of = torch.Tensor.to, torch.Tensor.type

    def to_cpu(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if "device" in kwargs:
            kwargs["device"] = _cpu_for(kwargs["device"])
        return to(self, *(_cpu_for(arg) for arg in args[:1]), *args[1:], **kwargs)

    def cuda_type(self: torch.Tensor, dtype: Any = None, *args: Any, **kwargs: Any) -> Any:
        # The optimizers sort parameters by these names.
        if dtype is None:
            return type_of(self).replace("torch.", "torch.cuda.", 1)
        return type_of(self, dtype, *args, **kwargs)

    context = torch.utils._device.DeviceContext
    begin = context.__init__

    def on_cpu(self: Any, device: Any) -> None:  # `with torch.device(…)`, in releases before 0.17
        begin(self, torch.device(_cpu_for(device)))

    context.__init__ = on_cpu
    torch.Tensor.to, torch.Tensor.type = to_cpu, cuda_type
    torch.Tensor.cuda = torch.Tensor.pin_memory = lambda self, *args, **kwargs: self
    torch.Tensor.record_stream = _returns(None)


def _patch_all_to_all() -> None:
    """Let all_to_all_single take its split sizes as tensors, which gloo refuses."""
    original = torch.distributed.all_to_all_single

    @functools.wraps(original)
    def all_to_all_single(
        output: torch.Tensor,
        input: torch.Tensor,
        output_split_sizes: Any = None,
        input_split_sizes: Any = None,
        **kwargs: Any,
    ) -> Any:
        sizes = (
            None if split is None else [int(size) for size in split]
            for split in (output_split_sizes, input_split_sizes)
        )
        return original(output, input, *sizes, **kwargs)

    torch.distributed.all_to_all_single = all_to_all_single


def _patch_uneven_collectives() -> None:
    """Let all_gather and reduce_scatter take parts of different length, which gloo refuses.

    Experts that are split over tensor ranks gather and scatter as many tokens as each rank has.
    """
    gather, scatter = torch.distributed.all_gather, torch.distributed.reduce_scatter

    def uneven(tensors: list[torch.Tensor]) -> bool:
        return len({tensor.shape for tensor in tensors}) > 1

    @functools.wraps(gather)
    def all_gather(
        outputs: list[torch.Tensor], input: torch.Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        if not uneven(outputs):
            return gather(outputs, input, *args, **kwargs)
        longest = max(len(output) for output in outputs)
        padded = input.new_zeros(longest, *input.shape[1:])
        padded[: len(input)] = input
        parts = [torch.empty_like(padded) for _ in outputs]
        gather(parts, padded, *args, **kwargs)
        for output, part in zip(outputs, parts):
            output.copy_(part[: len(output)])

    @functools.wraps(scatter)
    def reduce_scatter(
        output: torch.Tensor,
        inputs: list[torch.Tensor],
        op: Any = torch.distributed.ReduceOp.SUM,
        group: Any = None,
        **kwargs: Any,
    ) -> Any:
        if not uneven(inputs):
            return scatter(output, inputs, op, group, **kwargs)
        whole = torch.cat(inputs)
        torch.distributed.all_reduce(whole, op, group)
        rank = torch.distributed.get_rank(group)
        output.copy_(whole.split([len(part) for part in inputs])[rank])

    torch.distributed.all_gather = all_gather
    torch.distributed.reduce_scatter = reduce_scatter


def _share_gloo_device() -> None:
    """Let all process groups of a rank share one gloo device.

    A device has a thread that wakes up 100 times a second, and Megatron makes over a hundred
    groups. With a device each, the threads of a rank take a fifth of a core for themselves.
    """
    from torch.distributed import distributed_c10d as c10d

    plain = c10d.ProcessGroupGloo
    device = functools.cache(plain.create_default_device)

    class ProcessGroupGloo(plain):
        def __init__(self, store: Any, rank: int, size: int, timeout: Any = None) -> None:
            options = plain._Options()
            options._devices = [device()]
            if timeout is not None:
                options._timeout = timeout
            super().__init__(store, rank, size, options)

    c10d.ProcessGroupGloo = ProcessGroupGloo


def _skip_compilation() -> None:
    """Leave functions as they are where Megatron's fusions call torch.compile.

    Importing the compiler costs each process seconds, and small models never win them back.
    """

    def uncompiled(model: Callable[..., Any] | None = None, **kwargs: Any) -> Any:
        return model if model is not None else lambda function: function

    torch.compile = uncompiled
    # These methods import the compiler only to exclude themselves from it.
    for name in ("add_param_group", "load_state_dict", "state_dict", "zero_grad"):
        method = getattr(torch.optim.Optimizer, name)
        setattr(torch.optim.Optimizer, name, getattr(method, "__wrapped__", method))
