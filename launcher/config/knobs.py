"""The knobs: what the performance variables mean as Megatron arguments and environment variables.

A knob is a pure function. It reads the settings and the arguments that the model, TRAINING_PARAMS
and the command line have set, and it returns what it adds. It adds nothing that Megatron refuses.
It raises a UsageError where variables contradict each other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Callable

from launcher.config import layout, releases
from launcher.config.arguments import Argument, Arguments, integer, value
from launcher.config.parallelism import LAYERS_PER_CHUNK, LAYOUT, VIRTUAL
from launcher.config.settings import Settings
from launcher.errors import UsageError
from launcher.records import dataclass

SPLITS = (
    LAYOUT,
    "--hybrid-layer-pattern",
)  # each of these flags decides the whole split of the pipeline
UNEVEN = ("--decoder-first-pipeline-num-layers", "--decoder-last-pipeline-num-layers")


@dataclass(frozen=True)
class Effect:
    """What a knob adds to the job."""

    arguments: Arguments = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # printed, one line each


def _flags(origin: str, **flags: bool | int | str | tuple[str, ...]) -> Arguments:
    """Return Arguments from keyword names (tp_comm_overlap=True is --tp-comm-overlap)."""
    arguments: dict[str, Argument] = {}
    for name, given in flags.items():
        flag = "--" + name.replace("_", "-")
        if given is True:
            arguments[flag] = Argument(flag, (), origin)
        elif given is not False:
            values = given if isinstance(given, tuple) else (str(given),)
            arguments[flag] = Argument(flag, values, origin)
    return arguments


def pipeline(settings: Settings, present: Arguments) -> Effect:
    """VPP, LAYERS_PER_VP, PP_FIRST and PP_LAST: how the layers are split over the pipeline.

    VPP already agrees with a layout or a flag (build.py). The other variables are the user's
    only where the environment sets them; otherwise they come from runtime.conf. Raises UsageError
    for a variable of the user that would have no effect.
    """
    pp, vpp = settings.PP, settings.VPP
    stated = next((flag for flag in SPLITS if flag in present), None)
    if stated:
        _without_effect(settings, ("LAYERS_PER_VP", "PP_FIRST", "PP_LAST"), present[stated])
        return Effect()
    chunk_flag = next((flag for flag in (VIRTUAL, LAYERS_PER_CHUNK) if flag in present), None)
    if chunk_flag:
        _without_effect(settings, ("LAYERS_PER_VP",), present[chunk_flag])
    elif settings.LAYERS_PER_VP:
        return Effect(
            _flags("LAYERS_PER_VP", num_layers_per_virtual_pipeline_stage=settings.LAYERS_PER_VP)
        )
    if LAYERS_PER_CHUNK in present:
        return Effect()
    if vpp > 1 and pp == 1:
        raise UsageError(
            f"VPP={vpp} ({settings.origin('VPP')}) needs a pipeline, but PP is 1 "
            f"({settings.origin('PP')}): set VPP=1 or PP above 1"
        )
    virtual = _flags("VPP", num_virtual_stages_per_pipeline_rank=vpp) if vpp > 1 else {}
    uneven = next((flag for flag in UNEVEN if flag in present), None)
    if uneven:
        _without_effect(settings, ("PP_FIRST", "PP_LAST"), present[uneven])
        return Effect(virtual)
    return _split(settings, present, virtual)


def _without_effect(settings: Settings, names: Sequence[str], stated: Argument) -> None:
    """Raise UsageError for a variable of the environment that a flag overrides."""
    for name in names:
        if getattr(settings, name) and settings.origin(name) == "environment":
            raise UsageError(
                f"{name}={getattr(settings, name)} (environment) has no effect beside "
                f"{stated.flag} ({stated.origin}): drop one of them"
            )


def _split(settings: Settings, present: Arguments, virtual: Arguments) -> Effect:
    """Split the layers evenly, by PP_FIRST and PP_LAST, or by a layout."""
    pp, vpp = settings.PP, settings.VPP
    layers = layout.counted_layers(settings, present)
    asked = [
        name
        for name in ("PP_FIRST", "PP_LAST")
        if getattr(settings, name) and settings.origin(name) == "environment"
    ]
    if layers is None or (layers % (pp * vpp) == 0 and not asked):
        return Effect(virtual)
    # One variable of the environment stands alone; a row of runtime.conf always has both.
    first = settings.PP_FIRST if not asked or "PP_FIRST" in asked else None
    last = settings.PP_LAST if not asked or "PP_LAST" in asked else None
    ends = ", ".join(f"{name}={n}" for name, n in (("PP_FIRST", first), ("PP_LAST", last)) if n)
    misfit = f"{ends} do not split {layers} layers for PP={pp}, VPP={vpp}"
    if (asked or (first and last)) and layout.uneven_fits(layers, pp, vpp, first, last):
        uneven = _flags(
            "PP_FIRST, PP_LAST",
            decoder_first_pipeline_num_layers=first or False,
            decoder_last_pipeline_num_layers=last or False,
        )
        return Effect({**virtual, **uneven})
    if asked:
        raise UsageError(f"{misfit}: change them, or unset both, and a layout is chosen")
    if any(flag in present for flag in layout.ACCOUNTED) or layers < pp * vpp:
        raise UsageError(f"{layers} layers cannot be split over PP={pp} times VPP={vpp}")
    try:
        text = layout.balanced(layers, pp * vpp, integer(present, "--mtp-num-layers", 0))
    except ValueError as error:
        raise UsageError(str(error)) from None
    why = misfit if first and last else f"{layers} layers do not divide by PP={pp} times VPP={vpp}"
    return Effect(
        _flags("uneven pipeline", pipeline_model_parallel_layout=text),
        notes=(f"pipeline layout {text}: {why}",),
    )


def optimizer_offload(settings: Settings, present: Arguments) -> Effect:
    """OPTIMIZER_OFFLOAD: optimizer states and step on the CPU."""
    if not settings.OPTIMIZER_OFFLOAD:
        return Effect()
    origin = "OPTIMIZER_OFFLOAD"
    return Effect(
        {
            **_flags(origin, optimizer_cpu_offload=True, overlap_cpu_optimizer_d2h_h2d=True),
            # Megatron offloads only with the precision-aware optimizer (validate_args).
            **_flags(origin, use_precision_aware_optimizer=True),
        }
    )


def dispatcher(settings: Settings, present: Arguments) -> Effect:
    """DISPATCHER: what moves the tokens to their experts. Without it, the model's row decides."""
    _one_dispatcher(settings)
    origin = "DISPATCHER" if settings.DISPATCHER else "MOE_TOKEN_DISPATCHER"
    name = settings.DISPATCHER or settings.MOE_TOKEN_DISPATCHER
    # A default must not override the flag that the user wrote.
    if name is None or (not settings.DISPATCHER and "--moe-token-dispatcher-type" in present):
        return Effect()
    if name in ("allgather", "alltoall"):
        return Effect(_flags(origin, moe_token_dispatcher_type=name))
    backend = "deepep" if name == "flex" else name
    release = releases.index(settings.MCORE_RELEASE_VERSION)
    for newer, since in (("ncclep", "0.19"), ("deepepv2", "dev")):
        if backend == newer and release < releases.index(since):
            raise _too_old(settings, backend, since)
    if release < releases.index("0.16"):
        if backend == "hybridep":
            raise _too_old(settings, backend, "0.16")
        return Effect(_flags(origin, moe_token_dispatcher_type="flex", moe_enable_deepep=True))
    return Effect(
        _flags(
            origin,
            moe_token_dispatcher_type="flex",
            moe_flex_dispatcher_backend=backend,
            moe_hybridep_num_sms=32 if backend == "hybridep" else False,
        )
    )


def _one_dispatcher(settings: Settings) -> None:
    """Raise UsageError where the environment names two dispatchers, of which one has no effect."""
    own, model = settings.DISPATCHER, settings.MOE_TOKEN_DISPATCHER
    if own is None or model is None or settings.origin("MOE_TOKEN_DISPATCHER") != "environment":
        return
    if own != ("deepep" if model == "flex" else model):
        raise UsageError(
            f"MOE_TOKEN_DISPATCHER={model} (environment) has no effect beside DISPATCHER={own} "
            f"({settings.origin('DISPATCHER')}): set DISPATCHER alone"
        )


def _too_old(settings: Settings, dispatcher: str, since: str) -> UsageError:
    needed = "Megatron's dev branch" if since == "dev" else f"Megatron-Core {since} or newer"
    return UsageError(
        f"DISPATCHER={dispatcher} needs {needed}, "
        f"not MCORE_RELEASE_VERSION={settings.MCORE_RELEASE_VERSION}"
    )


def precision(settings: Settings, present: Arguments) -> Effect:
    """PR: bf16, fp8 (blockwise, Hopper), mxfp8 or nvfp4 (Blackwell)."""
    origin = f"PR={settings.PR}"
    if settings.PR == "bf16":
        # Megatron refuses the overlap without sequence parallelism, which TP1 does not have.
        return Effect(_flags(origin, tp_comm_overlap=settings.TP > 1))
    offload = settings.OPTIMIZER_OFFLOAD
    mxfp8 = settings.PR == "mxfp8"
    optimizer = _flags(
        origin,
        use_precision_aware_optimizer=True,
        main_grads_dtype="fp32",
        main_params_dtype="fp32",
        exp_avg_dtype="bf16",
        exp_avg_sq_dtype="bf16",
        moe_router_padding_for_quantization=True,
    )
    if settings.PR == "nvfp4":
        return Effect({**_flags(origin, fp4_recipe="nvfp4", fp4_format="e2m1"), **optimizer})
    quantized = _flags(
        origin,
        fp8_recipe="mxfp8" if mxfp8 else "blockwise",
        fp8_format="e4m3",
        # Megatron's CPU offload cannot gather FP8 parameters.
        fp8_param_gather=not offload,
        reuse_grad_buf_for_mxfp8_param_ag=mxfp8 and not offload,
        overlap_grad_reduce=mxfp8 and not offload,
        overlap_param_gather=mxfp8 and not offload,
    )
    return Effect({**quantized, **optimizer})


def a2a_overlap(settings: Settings, present: Arguments) -> Effect:
    """A2A_OVERLAP: hide a micro-batch's expert all-to-all behind the computation of another."""
    on = settings.A2A_OVERLAP
    margin = "24" if on else "0"
    return Effect(
        _flags("A2A_OVERLAP", delay_wgrad_compute=on, overlap_moe_expert_parallel_comm=on),
        {
            "CUDA_DEVICE_MAX_CONNECTIONS": "32" if on else "1",
            "NVTE_FWD_LAYERNORM_SM_MARGIN": margin,
            "NVTE_BWD_LAYERNORM_SM_MARGIN": margin,
        },
    )


def long_context(settings: Settings, present: Arguments) -> Effect:
    """SEQ_LEN: raise the model's maximum positions to a longer sequence."""
    positions = value(present, "--max-position-embeddings")
    if positions is None or not re.fullmatch("[0-9]{1,18}", positions):
        return Effect()
    if int(positions) >= settings.SEQ_LEN:
        return Effect()
    return Effect(_flags("SEQ_LEN", max_position_embeddings=settings.SEQ_LEN))


def data(settings: Settings, present: Arguments) -> Effect:
    """DATA_PATH: the dataset. Without it the job trains on mock data."""
    if {
        "--mock-data",
        "--data-args-path",
        "--train-data-path",
        "--per-split-data-args-path",
    } & present.keys():
        return Effect()
    if settings.DATA_PATH:
        return Effect(_flags("DATA_PATH", data_path=_blend(settings.DATA_PATH)))
    if "--data-path" in present:
        return Effect()
    mock = "DATA_PATH is not set: this trains on mock data"
    tokenizer = value(present, "--tokenizer-type")
    if (
        "--tokenizer-model" in present
        or tokenizer == "NullTokenizer"
        or "--vocab-size" not in present
    ):
        null, note = False, mock
    else:
        null = "NullTokenizer"
        note = f"{mock}; TOKENIZER_MODEL is not set either: NullTokenizer in place of {tokenizer}"
    return Effect(
        _flags("no DATA_PATH", mock_data=True, tokenizer_type=null),
        notes=() if settings.SMOKE else (note,),  # a smoke run always uses mock data
    )


def profile(settings: Settings, present: Arguments) -> Effect:
    """PROFILE: profile steps 23 to 25 of rank 0. build.py puts nsys before the program."""
    if settings.PROFILE == "0":
        return Effect()
    return Effect(
        _flags(
            "PROFILE",
            profile=True,
            profile_step_start=23,
            profile_step_end=25,
            profile_ranks=0,
            use_pytorch_profiler=settings.PROFILE == "torch",
        )
    )


def required_environment(settings: Settings, present: Arguments) -> Effect:
    """Set the variables that Megatron asserts beside some flags (validate_args)."""
    environment = {}
    if value(present, "--cuda-graph-impl") not in (None, "none"):
        # With expandable segments NCCL must not register buffers inside CUDA graphs.
        environment["NCCL_GRAPH_REGISTER"] = "0"
    if "--fine-grained-activation-offloading" in present:
        environment["NVTE_CPU_OFFLOAD_V1"] = "1"
    return Effect(environment=environment)


def nvlink_domain(settings: Settings, present: Arguments) -> Effect:
    """GB200_CLUSTER: 72 GPUs share one NVLink domain; DeepEP's hybrid kernels read its size."""
    return Effect(environment={"NVLINK_DOMAIN_SIZE": "72"} if settings.GB200_CLUSTER else {})


KNOBS: tuple[Callable[[Settings, Arguments], Effect], ...] = (
    pipeline,
    optimizer_offload,
    dispatcher,
    precision,
    a2a_overlap,
    long_context,
    data,
    profile,
    required_environment,
    nvlink_domain,
)


def _blend(text: str) -> tuple[str, ...]:
    """Split `weight prefix weight prefix …`. Other text is one prefix, with its spaces."""
    pair = r"\d*\.?\d+\s+\S+"
    words = text.split()
    if len(words) > 1 and all(word.startswith("/") for word in words):
        raise UsageError(
            f"DATA_PATH={text!r} names {len(words)} paths: a blend has a weight before each, "
            f"such as '0.5 {words[0]} 0.5 {words[1]}'"
        )
    return tuple(text.split()) if re.fullmatch(rf"\s*{pair}(\s+{pair})*\s*", text) else (text,)
