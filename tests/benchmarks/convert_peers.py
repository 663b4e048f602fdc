"""How fast the peers on the package index convert the same model, in the same run.

    .venv/training/bin/python tests/benchmarks/convert_peers.py FOLDER [gigabytes]

FOLDER gets an environment for mbridge and one for Megatron-Bridge, which use the torch of .venv, and
a synthetic Qwen3-like model of about that size (default 2). Each peer is called as its documentation
says: it builds Megatron's model in memory on one rank, fills it, and Megatron saves it as torch_dist;
mbridge without initialising the weights first, which is faster. Both want a GPU and Transformer
Engine. launcher/megatron/cpu_device.py and transformer_engine_shapes.py stand in for them: the peers'
own code moves the data, and what they write must equal ours to the bit.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.convert import (
    CP,
    ROOT,
    Measured,
    begin,
    copy,
    environment,
    measure,
    publish,
    row,
)

OURS = "torch_dist, 2 workers"
UV = shutil.which("uv") or ROOT / ".venv/uv/bin/uv"
# A peer's packages, and those among what they ask for that are in .venv or not needed on a CPU.
PEERS = {
    "mbridge": (
        ("mbridge==0.15.1", "megatron-core==0.15.3", "transformers==4.57.6", "einops==0.8.2"),
        ("torch",),
    ),
    "Megatron-Bridge": (
        (
            "megatron-bridge==0.6.2", "megatron-energon==7.4.1", "nvidia-modelopt==0.47.0",
            "nvidia-resiliency-ext==0.7.0", "multi-storage-client==1.3.1",
        ),
        (
            "comet-ml", "diffusers", "fast-hadamard-transform", "flash-linear-attention",
            "flashinfer-cubin", "flashinfer-python", "megatron-core", "mistral-common", "mlflow",
            "open-clip-torch", "qwen-vl-utils", "tensorboard", "timm", "torch", "torchvision",
            "wandb",
        ),
    ),
}  # fmt: skip


def install(folder: Path, name: str) -> Path:
    """Make a peer's environment; return its Python. torch is that of .venv, in all of them."""
    training = next((ROOT / ".venv/training/lib").glob("python*/site-packages"))
    python = folder / name / "bin" / "python"
    subprocess.run([UV, "venv", "--quiet", "--python", sys.executable, folder / name], check=True)
    own = next((folder / name / "lib").glob("python*/site-packages"))
    (own / "training.pth").write_text(f"{training}\n")
    packages, absent = PEERS[name]
    without = folder / "without"
    without.write_text("".join(f"{package}; sys_platform == 'never'\n" for package in absent))
    command = [UV, "pip", "install", "--quiet", "--compile-bytecode", "--python", python]
    # nvidia-resiliency-ext is built for a newer glibc than it turns out to need.
    command += ["--python-platform", "x86_64-manylinux_2_39", "--override", without]
    subprocess.run([*command, *packages], check=True)
    return python


def peer(name: str, source: str, target: str) -> None:
    """Convert with a peer, in its own environment."""
    one_rank = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1}
    os.environ.update({key: str(number) for key, number in one_rank.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29511", HF_HUB_OFFLINE="1")
    import torch
    import transformer_engine_shapes

    from launcher.megatron import cpu_device, cpu_modules

    transformer_engine_shapes.install()
    cpu_modules.install = lambda: None  # nothing is computed, and 0.15 has other modules
    cpu_device.install()
    torch.distributed.init_process_group("gloo", rank=0, world_size=1)
    if name == "mbridge":
        _mbridge(source, target)
    else:
        _megatron_bridge(source, target)
    for path in Path(target).rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _mbridge(source: str, target: str) -> None:
    import torch
    from mbridge import AutoBridge
    from mbridge.core.util import unwrap_model
    from megatron.core import dist_checkpointing, parallel_state, tensor_parallel

    parallel_state.initialize_model_parallel()
    tensor_parallel.model_parallel_cuda_manual_seed(1)
    bridge = AutoBridge.from_pretrained(source)
    bridge.set_extra_args(gradient_accumulation_fusion=False, perform_initialization=False)
    models = bridge.get_model()
    with torch.no_grad():
        bridge.load_weights(models, source, memory_efficient=True)
    os.makedirs(target)
    dist_checkpointing.save(unwrap_model(models[0]).sharded_state_dict(), target)


def _megatron_bridge(source: str, target: str) -> None:
    import types

    # Its default fuses the accumulation of gradients, and asks for the kernel when it is built.
    sys.modules["fused_weight_gradient_mlp_cuda"] = types.ModuleType("no_kernel")
    from megatron.bridge import AutoBridge

    AutoBridge.import_ckpt(source, target)


def tensors(checkpoint: Path) -> dict:
    """Return the tensors of a torch_dist checkpoint by key, as PyTorch itself reads it."""
    import torch
    from torch.distributed import checkpoint as dcp
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    (metadata,) = checkpoint.rglob(".metadata")
    reader = dcp.FileSystemReader(metadata.parent)
    found = {
        key: torch.empty(entry.size, dtype=entry.properties.dtype)
        for key, entry in reader.read_metadata().state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    dcp.load(found, storage_reader=reader, no_dist=True)
    return {key.removeprefix("model."): tensor for key, tensor in found.items()}


def compare(one: Path, other: Path) -> int:
    """Return how many tensors two checkpoints have; they must be the same to the bit."""
    import torch

    ours, theirs = tensors(one), tensors(other)
    differ = ours.keys() ^ theirs.keys()
    differ |= {
        key
        for key in ours.keys() & theirs.keys()
        if not torch.equal(ours[key].view(torch.int16), theirs[key].view(torch.int16))
    }
    if differ:
        sys.exit(f"error: {other} differs from {one} in {', '.join(sorted(differ))}")
    return len(ours)


def main() -> None:
    folder, size = begin(sys.argv[1:], 2)
    pythons = {name: install(folder, name) for name in PEERS}
    model = publish(folder, size)
    source, target, reference = folder / "source", folder / "target", folder / "reference"
    ours = environment(
        model, PP=1, EP=1, WORKERS=2, SOURCE_CKPT_PATH=source, TARGET_CKPT_PATH=target
    )
    theirs = {**os.environ, "PYTHONPATH": str(ROOT)}
    commands = {
        CP: (copy(source, target), theirs),
        OURS: (
            [sys.executable, "-m", "launcher.convert", "qwen3-moe"], ours,
        ),
        **{
            name: ([str(python), __file__, "--peer", name, str(source), str(target)], theirs)
            for name, python in pythons.items()
        },
    }  # fmt: skip
    runs: dict[str, list[Measured]] = {}
    for _ in range(2):
        for name, (command, environ) in commands.items():
            runs.setdefault(name, []).append(measure(name, command, source, target, environ))
            if name == OURS and not reference.exists():
                target.rename(reference)
                continue
            if name in PEERS:
                same = compare(reference, target)
            shutil.rmtree(target)
    best = {name: min(found, key=lambda run: run.seconds) for name, found in runs.items()}
    for name, run in best.items():
        print(row(name, run, best[CP]))
    print(f"all {same} tensors of each peer equal ours to the bit")
    shutil.rmtree(folder)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peer"]:
        peer(*sys.argv[2:])
    else:
        main()
