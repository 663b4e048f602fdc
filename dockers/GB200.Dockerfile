# Training image for GB200 and GB300 (arm64): Megatron-Core, Transformer Engine, HybridEP.
# README.md in this directory says how to build, import and change it, and where each pin comes from.
#
#   docker build --tag moe-zoo:gb200 - < dockers/GB200.Dockerfile

# --- pins ---
# What the image starts from, and what trains.
ARG NGC_PYTORCH_TAG=26.06-py3
ARG MEGATRON_CORE_VERSION=0.19.2
# Transformer Engine v2.17.1.
ARG TRANSFORMER_ENGINE_COMMIT=4329ff84bfbdaa778a33cba02a15fb0807c64689
# DeepEP, branch hybrid-ep: HybridEP, and the first version of DeepEP beside it.
ARG DEEPEP_COMMIT=94a9f8f6b146c07d97ec58f67cd6d303296d6098
ARG NVSHMEM_VERSION=3.4.5
# The GPU, in the words of PyTorch and of Transformer Engine.
ARG CUDA_ARCH_LIST="10.0 10.3"
# 100 builds the kernels specific to 10.0 and, since CUDA 12.9, those specific to 10.3.
ARG TRANSFORMER_ENGINE_CUDA_ARCHS="100"
# Python packages.
ARG ACCELERATE_VERSION=1.14.0
ARG FLASH_LINEAR_ATTENTION_VERSION=0.4.2
ARG FLASK_RESTFUL_VERSION=0.3.10
ARG JINJA2_VERSION=3.1.6
ARG NVIDIA_ML_PY_VERSION=13.615.71
ARG OMEGACONF_VERSION=2.3.1
ARG PIP_VERSION=26.2.1
ARG PYBIND11_VERSION=3.1.0
ARG PYYAML_VERSION=6.0.3
ARG SENTENCEPIECE_VERSION=0.2.2
# The linter takes the TOKEN of tiktoken for a secret.
# hadolint ignore=DL3064
ARG TIKTOKEN_VERSION=0.13.0
ARG TRANSFORMERS_VERSION=5.15.0
ARG WANDB_VERSION=0.31.0
# Packages that the ones above depend on are taken as the index had them then.
ARG PIP_UPLOADED_PRIOR_TO=2026-11-01T00:00:00Z
# Compilers at a time: about 4 GB of memory each.
ARG MAX_JOBS=8
# --- end of pins ---
# From here on the three Dockerfiles of this directory are the same, line by line; a test compares them.

# The base image with only its PyTorch protected: NVIDIA constrains every package it ships, which
# would refuse the versions pinned above; PyTorch is the one that nothing may replace.
FROM nvcr.io/nvidia/pytorch:${NGC_PYTORCH_TAG} AS base
ARG PIP_VERSION
ARG PYBIND11_VERSION
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
ENV PIP_CONSTRAINT=/etc/pip/constraint.txt
RUN mkdir -p /etc/pip \
 && python3 -c 'from importlib.metadata import version; print("torch==" + version("torch"))' \
        > "${PIP_CONSTRAINT}" \
 && python3 -m pip install --no-cache-dir --no-deps \
        "pip==${PIP_VERSION}" \
        "pybind11==${PYBIND11_VERSION}"

# Transformer Engine, as a wheel: sources and objects stay behind in this stage.
FROM base AS transformer-engine
ARG TRANSFORMER_ENGINE_COMMIT
ARG TRANSFORMER_ENGINE_CUDA_ARCHS
ARG MAX_JOBS
# NCCL EP is another dispatcher, which no recipe uses and which ties the build to one NCCL version.
RUN NVTE_FRAMEWORK=pytorch \
    NVTE_CUDA_ARCHS="${TRANSFORMER_ENGINE_CUDA_ARCHS}" \
    NVTE_WITH_NCCL_EP=0 \
    MAX_JOBS="${MAX_JOBS}" \
    python3 -m pip wheel --no-cache-dir --no-build-isolation --no-deps --wheel-dir /wheels \
        "git+https://github.com/NVIDIA/TransformerEngine.git@${TRANSFORMER_ENGINE_COMMIT}"

# DeepEP, likewise. NVSHMEM has to be there for the kernels that leave the node.
FROM base AS deep-ep
ARG NVSHMEM_VERSION
ARG DEEPEP_COMMIT
ARG CUDA_ARCH_LIST
ARG MAX_JOBS
WORKDIR /build/deep-ep
RUN python3 -m pip install --no-cache-dir --no-deps "nvidia-nvshmem-cu13==${NVSHMEM_VERSION}" \
 && git init --quiet . \
 && git fetch --quiet --depth 1 https://github.com/deepseek-ai/DeepEP.git "${DEEPEP_COMMIT}" \
 && git checkout --quiet FETCH_HEAD
# CPATH: CUDA 13 moved cuda/std/* to a directory that nvcc searches and g++ does not.
# LIBRARY_PATH: -lcuda is linked here, but the driver comes only with the running container.
# The base image sets TORCH_CUDA_ARCH_LIST to all of its architectures, so it is set again.
RUN CPATH="/usr/local/cuda/include/cccl${CPATH:+:${CPATH}}" \
    LIBRARY_PATH="/usr/local/cuda/lib64/stubs${LIBRARY_PATH:+:${LIBRARY_PATH}}" \
    TORCH_CUDA_ARCH_LIST="${CUDA_ARCH_LIST}" \
    MAX_JOBS="${MAX_JOBS}" \
    python3 -m pip wheel --no-cache-dir --no-build-isolation --no-deps --wheel-dir /wheels .

# Megatron-LM: the release's scripts and library, its data-set helper compiled once and for all ranks.
FROM base AS megatron-lm
ARG MEGATRON_CORE_VERSION
WORKDIR /opt/megatron-lm
RUN git init --quiet . \
 && git fetch --quiet --depth 1 https://github.com/NVIDIA/Megatron-LM.git \
        "refs/tags/core_v${MEGATRON_CORE_VERSION}" \
 && git checkout --quiet FETCH_HEAD \
 && rm -rf .git tests \
 && make -C megatron/core/datasets \
 && NO_VCS_VERSION=1 python3 -c 'import runpy, sys; \
version = runpy.run_path("megatron/core/package_info.py")["__version__"]; \
sys.exit(version != sys.argv[1] and "the tag holds version " + version)' "${MEGATRON_CORE_VERSION}"

# The image: the base, the Python packages, the two wheels, Megatron-LM.
FROM base
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# pip reads this from its environment: what the pins below depend on is taken as of that day.
ARG PIP_UPLOADED_PRIOR_TO
ARG ACCELERATE_VERSION
ARG FLASH_LINEAR_ATTENTION_VERSION
ARG FLASK_RESTFUL_VERSION
ARG JINJA2_VERSION
ARG NVIDIA_ML_PY_VERSION
ARG NVSHMEM_VERSION
ARG OMEGACONF_VERSION
ARG PYYAML_VERSION
ARG SENTENCEPIECE_VERSION
# The linter takes the TOKEN of tiktoken for a secret.
# hadolint ignore=DL3064
ARG TIKTOKEN_VERSION
ARG TRANSFORMERS_VERSION
ARG WANDB_VERSION
RUN rm -rf /opt/megatron-lm \
 && python3 -m pip install --no-cache-dir \
        "accelerate==${ACCELERATE_VERSION}" \
        "flash-linear-attention==${FLASH_LINEAR_ATTENTION_VERSION}" \
        "flask-restful==${FLASK_RESTFUL_VERSION}" \
        "jinja2==${JINJA2_VERSION}" \
        "nvidia-ml-py==${NVIDIA_ML_PY_VERSION}" \
        "nvidia-nvshmem-cu13==${NVSHMEM_VERSION}" \
        "omegaconf==${OMEGACONF_VERSION}" \
        "pyyaml==${PYYAML_VERSION}" \
        "sentencepiece==${SENTENCEPIECE_VERSION}" \
        "tiktoken==${TIKTOKEN_VERSION}" \
        "transformers==${TRANSFORMERS_VERSION}" \
        "wandb==${WANDB_VERSION}"

# torch leaves the architecture out of the device link when a path among its flags contains "arch",
# and nvcc then links for sm_75: the kernels load nowhere. Hence the look into the finished library.
ARG CUDA_ARCH_LIST
RUN --mount=type=bind,from=transformer-engine,source=/wheels,target=/wheels/transformer-engine \
    --mount=type=bind,from=deep-ep,source=/wheels,target=/wheels/deep-ep \
    python3 -m pip install --no-cache-dir /wheels/*/*.whl \
 && library="$(python3 -c 'from importlib.util import find_spec; print(find_spec("deep_ep_cpp").origin)')" \
 && for arch in ${CUDA_ARCH_LIST}; do \
        cuobjdump --list-elf "${library}" | grep "sm_$(echo "${arch}" | tr -d .)[.]cubin" \
            || { echo "DeepEP was not linked for compute capability ${arch}" >&2; exit 1; }; \
    done

COPY --from=megatron-lm /opt/megatron-lm /opt/megatron-lm
# HybridEP compiles its kernels when a job starts and looks for nvcc below CUDA_HOME.
ENV CUDA_HOME=/usr/local/cuda \
    PYTHONPATH=/opt/megatron-lm
WORKDIR /workspace
