#!/bin/bash
#SBATCH --nodes=32
#SBATCH --ntasks-per-node=8
#SBATCH --account=YOUR_ACCOUNT
#SBATCH --partition=YOUR_PARTITION
#SBATCH --time=00:20:00
#SBATCH --job-name=YOUR_ACCOUNT-moe-qwen3-235b-h100-128k-260101_000000
#SBATCH --dependency=singleton
#SBATCH --output=/output/slurm_logs/%j.log
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=URG@300
#
# Qwen3-235B-A22B: 256 ranks, TP4 PP8 EP8 CP8
# Complete in itself: `sbatch job.sh` in its folder starts the same run again, after its last checkpoint.
# shellcheck disable=SC2016,SC2329 # the quoted values reach Megatron as they are; tasks call functions
set +o posix
set -euo pipefail

# The training processes get what this file says, whatever shell has submitted it. -p leaves out that
# shell's functions and options; the loop leaves out its variables, but for those of the first case.
[[ $- == *p* ]] || builtin exec /bin/bash -p "$0" "$@"
unset _name _left_out
_left_out=()
for _name in $(compgen -e); do
  case $_name in
  HOME | USER | LOGNAME | PATH | KRB5CCNAME | SLURM_CONF | SLURM_JWT | WANDB_API_KEY | HF_TOKEN | SLURMD_NODENAME | SLURM_CLUSTER_NAME | SLURM_JOB_CPUS_PER_NODE | SLURM_JOB_ID | SLURM_JOB_NODELIST | SLURM_JOB_NUM_NODES | SLURM_JOB_PARTITION | SLURM_TASKS_PER_NODE | SLURM_SPANK_*) ;;
  *)
    unset "$_name" 2>/dev/null || export -n "${_name?}"
    case $_name in APPTAINER* | BASH_ENV | CU[ABD]* | ENROOT* | FI_* | GLOO* | HF_* | *_proxy | LD_* | LOCAL_* | MASTER_ADDR | MKL_* | *NCCL* | NVIDIA* | NVSHMEM* | NVTE* | OMP[_I]* | *PMI* | PYTHON* | PYTORCH* | RANK | SBATCH* | SRUN* | TORCH* | TRITON* | UC[CX]_* | WANDB* | WORLD_SIZE) _left_out+=("$_name") ;; esac
    ;;
  esac
done
# Home and name are the user's own.
unset HOME
export HOME=~ USER LOGNAME
USER=$(id -un) LOGNAME=$USER

export CUDA_DEVICE_MAX_CONNECTIONS=1
export NCCL_NVLS_ENABLE=0
export NVTE_ALLOW_NONDETERMINISTIC_ALGO=1
export NVTE_BWD_LAYERNORM_SM_MARGIN=0
export NVTE_FWD_LAYERNORM_SM_MARGIN=0
export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
export WANDB_MODE=disabled
# Each task sets these once more, because a container's image may have set them otherwise.
exports=$(declare -px CUDA_DEVICE_MAX_CONNECTIONS NCCL_NVLS_ENABLE NVTE_ALLOW_NONDETERMINISTIC_ALGO NVTE_BWD_LAYERNORM_SM_MARGIN NVTE_FWD_LAYERNORM_SM_MARGIN PYTORCH_CUDA_ALLOC_CONF WANDB_MODE)

readonly run_dir=/output/runs/qwen3-235b-h100-128k-260101_000000
fail() {
  echo "error: $*" >&2
  exit 1
}

# Print the job that works in a run directory; nothing where its newest one has ended.
at_work() {
  local -r last=$(readlink --canonicalize-missing "$1/log")
  local -r job=$(basename "$last" .log)
  local state=COMPLETING
  [[ $job =~ ^[0-9]+$ && $job != "$SLURM_JOB_ID" ]] || return 0
  while [[ $state == COMPLETING ]]; do
    state=$(squeue --noheader --jobs="$job" --format=%T 2>&1) || true
    [[ $state != COMPLETING ]] || sleep 5
  done
  case $state in
  RUNNING | SUSPENDED | STOPPED | SIGNALING | *'ontact slurm'* | *'imed out'*) echo "job $job ($state)" ;;
  esac
}

# The log is always in slurm_logs, whatever output file Slurm was told.
mkdir -p "$run_dir" "$run_dir/../../slurm_logs"
exec </dev/null >>"$run_dir/../../slurm_logs/$SLURM_JOB_ID.log" 2>&1
facts=$(scontrol --oneliner show job "$SLURM_JOB_ID" || true)
[[ $facts != *ArrayTaskId=* ]] || fail "this is one of a job array (SBATCH_ARRAY_INX?), and a run directory has one job: $run_dir"
[[ ! $facts =~ \ NumNodes=([0-9]+) || ${BASH_REMATCH[1]} == 32 ]] || fail "the job has ${BASH_REMATCH[1]} nodes, and its script is for 32"
[[ ! $facts =~ OverSubscribe=(YES|OK|USER|MCS) ]] || fail "the job shares its nodes (SBATCH_EXCLUSIVE?), and its script is for whole ones"
[[ $facts =~ Restarts=([0-9]+) ]] && restarts=${BASH_REMATCH[1]} || restarts=0

# A run directory has one job at a time: its Nth is the one that could link log.N.
turn=1
while [[ -L $run_dir/log.$turn ]]; do turn=$((turn + 1)); done
if [[ $(readlink "$run_dir/log.$((turn - 1))") == *"/$SLURM_JOB_ID.log" ]]; then
  turn=$((turn - 1)) # Slurm has started this job again
else
  other=$(at_work "$run_dir")
  [[ -z $other ]] || fail "$other has this run directory, so this job starts nothing: $run_dir"
  ln -s "../../slurm_logs/$SLURM_JOB_ID.log" "$run_dir/log.$turn" || fail "another job was faster: $run_dir"
fi
ln -sfn "log.$turn" "$run_dir/log"

training_command=(
  python3 -u YOUR_MEGATRON_PATH/pretrain_gpt.py
  --exit-signal-handler
  --exit-signal SIGURG
  --exit-on-missing-checkpoint
  --dist-ckpt-strictness raise_unexpected
  --tensor-model-parallel-size 4
  --pipeline-model-parallel-size 8
  --expert-model-parallel-size 8
  --expert-tensor-parallel-size 1
  --context-parallel-size 8
  --sequence-parallel
  --use-distributed-optimizer
  --distributed-timeout-minutes 220
  --micro-batch-size 1
  --global-batch-size 256
  --seq-length 131072
  --eval-iters 32
  --data-cache-path /workspace/data_cache
  --split '99,1,0'
  --num-workers 6
  --no-mmap-bin-files
  --no-create-attention-mask-in-dataloader
  --position-embedding-type rope
  --normalization RMSNorm
  --swiglu
  --disable-bias-linear
  --untie-embeddings-and-output-weights
  --moe-grouped-gemm
  --moe-permute-fusion
  --attention-dropout 0.0
  --hidden-dropout 0.0
  --weight-decay 0.1
  --clip-grad 1.0
  --adam-beta1 0.9
  --adam-beta2 0.95
  --lr-decay-style cosine
  --save /output/checkpoints
  --save-interval 100
  --auto-detect-ckpt-format
  --log-interval 1
  --log-throughput
  --log-timers-to-tensorboard
  --log-memory-to-tensorboard
  --log-validation-ppl-to-tensorboard
  --tensorboard-dir /output/tensorboard
  --wandb-project moe-benchmarking-v0.19
  --wandb-save-dir /output/wandb
  --wandb-exp-name Qwen3-235B-A22B-TP4PP8EP8CP8VPP4-MBS1GBS256-v0.19
  --bf16
  --transformer-impl transformer_engine
  --train-samples 268554688
  --exit-duration-in-mins 230
  --eval-interval 500
  --tokenizer-type HuggingFaceTokenizer
  --vocab-size 151936
  --make-vocab-size-divisible-by 1187
  --group-query-attention
  --num-query-groups 4
  --kv-channels 128
  --rotary-percent 1.0
  --rotary-base 1000000
  --norm-epsilon 1e-6
  --moe-router-load-balancing-type aux_loss
  --lr 3.9e-6
  --min-lr 3.9e-7
  --lr-decay-samples 584765624
  --lr-warmup-samples 1536000
  --qk-layernorm
  --moe-router-dtype fp32
  --moe-router-fusion
  --moe-aux-loss-coeff 1e-3
  --init-method-std 0.02
  --cross-entropy-loss-fusion
  --cross-entropy-fusion-impl native
  --enable-experimental
  --manual-gc
  --manual-gc-interval 5
  --account-for-embedding-in-pipeline-split
  --account-for-loss-in-pipeline-split
  --overlap-grad-reduce
  --overlap-param-gather
  --tokenizer-model Qwen/Qwen3-235B-A22B
  --num-layers 94
  --hidden-size 4096
  --ffn-hidden-size 12288
  --num-attention-heads 64
  --max-position-embeddings 131072
  --num-experts 128
  --moe-router-topk 8
  --moe-ffn-hidden-size 1536
  --lr-warmup-init 3.9e-7
  --logging-level 40
  --num-virtual-stages-per-pipeline-rank 4
  --moe-token-dispatcher-type flex
  --moe-flex-dispatcher-backend deepep
  --tp-comm-overlap
  --mock-data
  --recompute-granularity selective
  --recompute-modules layernorm moe
)
begins="at its first iteration"

readonly tracker=latest_checkpointed_iteration.txt
# Say whether a checkpoint is whole. Megatron writes the index last.
whole() {
  [[ -s $1/metadata.json && -s $1/.metadata || -s $1/mp_rank_03_007_007/model_optim_rng.pt ]]
}

# Print the folder of an iteration, or of the released weights.
folder_of() {
  if [[ $2 == release ]]; then echo "$1/release"; else printf '%s/iter_%07d\n' "$1" "$((10#$2))"; fi
}

# Print what keeps Megatron from loading iteration $2, or the tracker's, from a folder; or nothing.
flaw() {
  local iteration=${2:-} folder
  if [[ -z $iteration ]]; then
    [[ -e $1/$tracker ]] || { echo "$1 has no checkpoint: there is no $tracker" && return; }
    iteration=$(tr -d '[:space:]' <"$1/$tracker")
    [[ $iteration =~ ^(release|[0-9]+)$ ]] || { echo "$1/$tracker holds '$iteration', which is no iteration" && return; }
  fi
  folder=$(folder_of "$1" "$iteration")
  whole "$folder" || echo "$folder is not there, not whole, or not of TP4 PP8 EP8 ETP1"
}

# Let a folder's tracker name its newest whole checkpoint, if the one that it names is not whole.
# Those that are older than the file $2 do not count.
mend() {
  local -r found=$(flaw "$1")
  local folder newest=
  [[ -n $found ]] || return 0
  for folder in "$1"/iter_*; do
    if whole "$folder" && [[ -z ${2:-} || $folder/.metadata -nt $2 ]]; then newest=$folder; fi
  done
  [[ -n $newest ]] || fail "$found, and no other checkpoint is whole"
  echo "note: $found; this goes on from the newest whole one, ${newest##*/}"
  echo "$((10#${newest##*iter_}))" >"$1/$tracker"
}

# A folder of checkpoints has one run at a time, to which its link `run` leads.
first_start=(--finetune --no-load-optim --no-load-rng)
later_start=(--load /output/checkpoints)
readonly save=/output/checkpoints
mkdir -p "$save"
owner=$(readlink "$save/run") || owner=
if [[ $owner != "$run_dir" ]]; then
  other=${owner:+$(at_work "$owner")}
  [[ -z $other ]] || fail "$other of $owner saves to $save"
  [[ ! -e $save/$tracker ]] ||
    fail "$save holds iteration $(<"$save/$tracker") of ${owner:-an earlier run}: RESUME=1 continues it, another OUTPUT_PATH leaves it alone, FORCE=1 overwrites it"
  ln -sfn "$run_dir" "$save/run"
fi
# A checkpoint is this run's own if it is younger than the run's first start.
[[ -e $run_dir/started ]] || touch "$run_dir/started"
if [[ $save/$tracker -nt $run_dir/started ]]; then
  mend "$save" "$run_dir/started"
  begins="after iteration $(<"$save/$tracker")"
  training_command+=("${later_start[@]}")
else
  training_command+=("${first_start[@]}")
fi

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
export MASTER_ADDR=${nodes[0]}
listening() { (: <"/dev/tcp/$MASTER_ADDR/$1") 2>/dev/null; }
# A free port, below those that the kernel gives to outgoing connections. Rank 0 listens much later,
# so that a lock tells other jobs of it, for as long as this script runs.
claim() {
  command -v flock >/dev/null || return 0
  { exec {lock}>>"/tmp/.master_port_$1"; } 2>/dev/null && flock --nonblock "$lock"
}
read -r ceiling _ </proc/sys/net/ipv4/ip_local_port_range
((ceiling > 21000)) || ceiling=30000
port=$((20000 + SLURM_JOB_ID % (ceiling - 20000)))
for _ in {1..100}; do
  if ! listening "$port" && claim "$port"; then break; fi
  port=$((port + 1 < ceiling ? port + 1 : 20000))
done
export MASTER_PORT=$port
exports+=$'\n'$(declare -px MASTER_ADDR MASTER_PORT)

echo '=== Qwen3-235B-A22B: 256 ranks, TP4 PP8 EP8 CP8'
echo "job            $SLURM_JOB_ID, number $turn of this run, start $((restarts + 1)); begins $begins"
echo "where          $SLURM_CLUSTER_NAME, partition $SLURM_JOB_PARTITION, $SLURM_JOB_NUM_NODES nodes: ${nodes[*]}"
echo "run directory  $run_dir"
cat "$run_dir/versions.yaml" || true
[[ -z ${_left_out[*]:-} ]] || echo "note: the submitting shell's ${_left_out[*]} did not reach the training processes"
echo "=== $(date '+%F %T')"

[[ $(srun --help) == *--container-image* ]] ||
  fail "srun has no --container-image: the pyxis plugin is not installed here (CONTAINER_RUNTIME=apptainer or none does without)"
# The training needs no MPI, but libraries of an image may use PMIx.
[[ $(timeout 10 srun --mpi=list 2>&1) == *pmix* ]] && mpi=pmix || mpi=none

# Become one training process. Each task runs this in its container, with the rank that Slurm gave it.
run_rank() {
  export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=256 LOCAL_WORLD_SIZE=8
  export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-/tmp/triton_cache_${SLURM_JOB_ID}_$SLURM_NODEID}
  if ((RANK == 0)); then note_environment; fi
  exec "$@"
}

# Write rank 0's environment without secrets, and print what differs from environment.yaml.
note_environment() {
  local name meant
  [[ -w /output/runs/qwen3-235b-h100-128k-260101_000000 ]] || return 0 # the container has no such place
  for name in $(compgen -e); do
    case ${name^^} in
    *KEY* | *TOKEN* | *SECRET* | *PASSW* | *CREDENTIAL* | *JWT*) ;;
    *) printf '%s=%q\n' "$name" "${!name}" ;;
    esac
  done | masked >/output/runs/qwen3-235b-h100-128k-260101_000000/environment.rank0
  for name in CUDA_DEVICE_MAX_CONNECTIONS NCCL_NVLS_ENABLE NVTE_ALLOW_NONDETERMINISTIC_ALGO NVTE_BWD_LAYERNORM_SM_MARGIN NVTE_FWD_LAYERNORM_SM_MARGIN PYTORCH_CUDA_ALLOC_CONF WANDB_MODE; do
    meant=$(eval "$exports" && printf %s "${!name}")
    [[ ${!name:-} == "$meant" ]] || echo "note: rank 0 has $name=${!name:-}, and environment.yaml says $meant" | masked
  done
}

# Take names and passwords out of the URLs and proxies of a text.
masked() { sed -E 's,(://)([^/@[:space:]]*|[^@[:space:]]*:[^[:space:]]*)@,\1***@,g; s,^([[:alnum:]_]*_[pP][rR][oO][xX][yY]=)[^/]*@,\1***@,'; }

status=0
written=$(stat --dereference --format=%s "$run_dir/log" 2>/dev/null || echo 0) # before this start
srun \
  --nodes=32 --ntasks=256 --ntasks-per-node=8 \
  --distribution=block \
  --cpu-bind="${SLURM_CPU_BIND:-none}" \
  --mpi="$mpi" \
  --export="$(compgen -e | paste --serial --delimiters=,)" \
  --label \
  --kill-on-bad-exit=1 \
  --no-container-mount-home \
  --container-image=YOUR_CONTAINER_IMAGE \
  --container-mounts=YOUR_CONTAINER_MOUNTS \
  --container-workdir=YOUR_MEGATRON_PATH \
  bash -c "exports=$(printf %q "$exports"); eval \"\$exports\"; $(declare -f masked note_environment run_rank); run_rank \"\$@\"" task \
  "${training_command[@]}" || status=$?
output() { tail --bytes="+$((written + 1))" "$run_dir/log"; }
# What the log of this start tells of its end.
milestones=$(output | grep --text --only-matching -E 'iteration +[0-9]+/ *[0-9]+|after training is done|exiting program (after|at)|Exited with exit code [0-9]+' || true)
reached=$(grep iteration <<<"$milestones" | tail -n 1 || true)
# srun ends the other ranks after a failure; the first one's status is the one to keep.
if ((status > 128)) && [[ $milestones =~ 'exit code '([0-9]+) ]]; then status=${BASH_REMATCH[1]}; fi
# Megatron may end with status 0 though it could not begin; the log tells how far it came.
if ((status == 0)) && [[ $milestones != *'after training is done'* && $milestones != *'exiting program'* ]] &&
  ! [[ $reached =~ ([0-9]+)/\ *([0-9]+)$ && ${BASH_REMATCH[1]} == "${BASH_REMATCH[2]}" ]] &&
  [[ -n $(output | grep --text --max-count=1 -E '^ *[0-9]+: ' || true) ]]; then
  echo "error: the training ended with status 0 but not at its last iteration: ${reached:-it made none}" >&2
  status=1
fi
exit "$status"
