#!/bin/bash
#SBATCH --nodes=32
#SBATCH --ntasks-per-node=8
#SBATCH --account=YOUR_ACCOUNT
#SBATCH --partition=YOUR_PARTITION
#SBATCH --time=00:40:00
#SBATCH --job-name=YOUR_ACCOUNT-moe-dsv3-h100-32k-260101_000000
#SBATCH --dependency=singleton
#SBATCH --output=/output/slurm_logs/%j.log
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=URG@300
#
# DeepSeek-V3: 256 ranks, TP8 PP8 EP32 CP1
# Complete in itself: `sbatch job.sh` in its folder starts the same run again, after its last checkpoint.
# shellcheck disable=SC2016 # the quoted values reach Megatron as they are
set -euo pipefail

export CUDA_DEVICE_MAX_CONNECTIONS=1
export NCCL_DEBUG=VERSION
export NCCL_GRAPH_REGISTER=0
export NCCL_NVLS_ENABLE=0
export NVTE_ALLOW_NONDETERMINISTIC_ALGO=1
export NVTE_BWD_LAYERNORM_SM_MARGIN=0
export NVTE_FUSED_ATTN=1
export NVTE_FWD_LAYERNORM_SM_MARGIN=0
export NVTE_NORM_BWD_USE_CUDNN=1
export NVTE_NORM_FWD_USE_CUDNN=1
export PYTHONWARNINGS=ignore
export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
export TORCH_NCCL_AVOID_RECORD_STREAMS=0
export WANDB_MODE=disabled

readonly run_dir=/output/runs/dsv3-h100-32k-260101_000000
fail() {
  echo "error: $*" >&2
  exit 1
}

# Never two jobs in one run directory: log.N belongs to its Nth job, and who links it has the turn.
mkdir -p "$run_dir"
turn=1
while [[ -L $run_dir/log.$turn ]]; do turn=$((turn + 1)); done
last=$(readlink "$run_dir/log.$((turn - 1))" || true)
last=${last##*/} last=${last%.log}
if [[ $last == "$SLURM_JOB_ID" ]]; then
  turn=$((turn - 1)) # Slurm has started this job again
else
  state=COMPLETING
  while [[ -n $last && $state == COMPLETING ]]; do
    state=$(squeue --noheader --jobs="$last" --format=%T 2>&1) || true
    [[ $state != COMPLETING ]] || sleep 5
  done
  case $state in
  RUNNING | SUSPENDED | STOPPED | SIGNALING | *'ontact slurm'* | *'imed out'*)
    fail "job $last ($state) has this run directory, so this job starts nothing: $run_dir"
    ;;
  esac
  ln -s "../../slurm_logs/$SLURM_JOB_ID.log" "$run_dir/log.$turn" || fail "another job was faster: $run_dir"
fi
ln -sfn "log.$turn" "$run_dir/log"

training_command=(
  python3 -u YOUR_MEGATRON_PATH/pretrain_gpt.py
  --exit-signal-handler
  --exit-signal SIGURG
  --tensor-model-parallel-size 8
  --pipeline-model-parallel-size 8
  --expert-model-parallel-size 32
  --expert-tensor-parallel-size 1
  --context-parallel-size 1
  --sequence-parallel
  --use-distributed-optimizer
  --distributed-timeout-minutes 60
  --micro-batch-size 1
  --global-batch-size 1920
  --seq-length 32768
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
  --save-interval 500
  --auto-detect-ckpt-format
  --dist-ckpt-strictness log_all
  --log-interval 1
  --log-throughput
  --log-timers-to-tensorboard
  --log-memory-to-tensorboard
  --log-validation-ppl-to-tensorboard
  --tensorboard-dir /output/tensorboard
  --wandb-project moe-benchmarking-v0.19
  --wandb-save-dir /output/wandb
  --wandb-exp-name DeepSeek-V3-TP8PP8EP32CP1VPP4-MBS1GBS1920-v0.19
  --bf16
  --transformer-impl transformer_engine
  --train-samples 585937500
  --eval-interval 200
  --tokenizer-type HuggingFaceTokenizer
  --multi-latent-attention
  --kv-lora-rank 512
  --qk-head-dim 128
  --qk-pos-emb-head-dim 64
  --v-head-dim 128
  --kv-channels 128
  --qk-layernorm
  --norm-epsilon 1e-6
  --rope-type yarn
  --rotary-base 10000
  --rotary-scaling-factor 40
  --max-position-embeddings 163840
  --moe-router-dtype fp32
  --moe-router-load-balancing-type seq_aux_loss
  --init-method-std 0.02
  --lr-decay-samples 584765624
  --no-check-for-nan-in-loss-and-grad
  --overlap-grad-reduce
  --overlap-param-gather
  --exit-duration-in-mins 220
  --hidden-size 7168
  --ffn-hidden-size 18432
  --q-lora-rank 1536
  --mscale 1.0
  --mscale-all-dim 1.0
  --moe-ffn-hidden-size 2048
  --moe-shared-expert-intermediate-size 2048
  --moe-router-topk 8
  --moe-router-score-function sigmoid
  --moe-router-enable-expert-bias
  --moe-router-bias-update-rate 1e-3
  --moe-router-fusion
  --lr 3.9e-6
  --min-lr 3.9e-7
  --lr-warmup-init 3.9e-7
  --lr-warmup-samples 1536000
  --no-save-optim
  --logging-level 40
  --cross-entropy-loss-fusion
  --cross-entropy-fusion-impl native
  --enable-experimental
  --manual-gc
  --manual-gc-interval 10
  --tokenizer-model deepseek-ai/DeepSeek-V3
  --vocab-size 129280
  --make-vocab-size-divisible-by 1010
  --num-layers 61
  --num-attention-heads 128
  --num-experts 256
  --moe-layer-freq '([0]*3+[1]*58)'
  --moe-router-num-groups 8
  --moe-router-group-topk 4
  --moe-router-topk-scaling-factor 2.5
  --moe-aux-loss-coeff 1e-4
  --recompute-granularity selective
  --recompute-modules mla_up_proj moe mlp layernorm
  --optimizer-cpu-offload
  --overlap-cpu-optimizer-d2h-h2d
  --use-precision-aware-optimizer
  --moe-token-dispatcher-type flex
  --moe-flex-dispatcher-backend deepep
  --fp8-recipe blockwise
  --fp8-format e4m3
  --main-grads-dtype fp32
  --main-params-dtype fp32
  --exp-avg-dtype bf16
  --exp-avg-sq-dtype bf16
  --moe-router-padding-for-quantization
  --mock-data
  --pipeline-model-parallel-layout 'Et*2|(tt|)*22t|(tt|)*7mL'
  --mtp-num-layers 1
  --mtp-loss-scaling-factor 0.1
)
begins="at its first iteration"
first_start=(--no-load-optim --no-load-rng)
later_start=(--load /output/checkpoints --no-load-optim)
# A checkpoint is this run's when it is younger than the run's first start.
[[ -e $run_dir/started ]] || touch "$run_dir/started"
readonly saved=/output/checkpoints/latest_checkpointed_iteration.txt
if [[ $saved -nt $run_dir/started ]]; then
  begins="after iteration $(<"$saved")"
  training_command+=("${later_start[@]}")
else
  training_command+=("${first_start[@]}")
fi

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
export MASTER_ADDR=${nodes[0]} MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
echo '=== DeepSeek-V3: 256 ranks, TP8 PP8 EP32 CP1'
echo "job            $SLURM_JOB_ID, number $turn of this run, start $((${SLURM_RESTART_COUNT:-0} + 1)); begins $begins"
echo "where          $SLURM_CLUSTER_NAME, partition $SLURM_JOB_PARTITION, $SLURM_JOB_NUM_NODES nodes: ${nodes[*]}"
echo "run directory  $run_dir"
cat "$run_dir/versions.yaml" || true
echo "=== $(date '+%F %T')"

[[ $(srun --help) == *--container-image* ]] ||
  fail "srun has no --container-image: the pyxis plugin is not installed here (CONTAINER_RUNTIME=apptainer or none does without)"
written=$(stat --dereference --format=%s "$run_dir/log" 2>/dev/null || echo 0)

# Each task learns its rank from Slurm, then becomes the training command.
status=0
srun \
  --mpi=pmix \
  --label \
  --kill-on-bad-exit=1 \
  --no-container-mount-home \
  --container-image=YOUR_CONTAINER_IMAGE \
  --container-mounts=YOUR_CONTAINER_MOUNTS \
  --container-workdir=YOUR_MEGATRON_PATH \
  bash -c '
    export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
    export LOCAL_WORLD_SIZE=$SLURM_NTASKS_PER_NODE
    export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-/tmp/triton_cache_${SLURM_JOB_ID}_$SLURM_NODEID}
    exec "$@"
  ' task "${training_command[@]}" || status=$?
said=$(tail --bytes="+$((written + 1))" "$run_dir/log" | grep --text --only-matching -E 'iteration +[0-9]+/|exiting program after|Exited with exit code [0-9]+' || true)
# The ranks that srun ends after the first failure would hide that one's status.
if ((status > 128)) && [[ $said =~ 'exit code '([0-9]+) ]]; then status=${BASH_REMATCH[1]}; fi
exit "$status"
