#!/usr/bin/env bash
# Runs unitoken on GPU nodes of a SLURM cluster, one process a GPU (or a node). Before its time limit, or preempted,
# the run saves, and the job goes back into the queue.
#
#   launch/slurm_gpu.sh --nodes 4 --gpus-per-node 8 --cpus-per-task 12 --time 24:00:00 \
#     train --config stage2 --workdir /shared/stage2 --config.mesh.fsdp=32
#
#   --nodes N
#   --gpus-per-node N
#   --process-per-node   one process drives all GPUs of a node (default: one process a GPU)
#   --cpus-per-task N    CPU cores of a process; without it SLURM may give it a single one
#   --time LIMIT         default: the partition's
#   --grace SECONDS      before the time limit, in which all is saved (default 600)
#   --name NAME          of the job (default unitoken)
#   --dry-run            print the command, run nothing
#
# sbatch's own variables say the rest: SBATCH_PARTITION, SBATCH_ACCOUNT, SBATCH_QOS, ... The job has the
# environment of the shell that starts this, so activate unitoken's before.
set -euo pipefail
source "$(dirname "$0")/common.sh"

nodes='' gpus_per_node='' process_per_node='' cpus_per_task='' time='' grace=600 name=unitoken
parse "nodes gpus-per-node cpus-per-task time grace name" "process-per-node" "$@"
require nodes 4
require gpus-per-node 8
whole nodes gpus-per-node grace
require_command
need sbatch "start this where SLURM's commands are"

# jax gives process i of a node GPU i. So there must be as many processes as GPUs, or one that is told of them all.
tasks=$gpus_per_node environment=()
if [[ $process_per_node ]]; then
  tasks=1 environment=(env "JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((gpus_per_node - 1)))")
fi
# --signal without "B:" goes to the processes alone, not to the job's shell.
run "${environment[@]}" sbatch --job-name "$name" --nodes "$nodes" --ntasks-per-node "$tasks" \
  --gpus-per-node "$gpus_per_node" ${cpus_per_task:+--cpus-per-task "$cpus_per_task"} ${time:+--time "$time"} \
  --requeue "--signal=TERM@$grace" --open-mode append --output "$name-%j.log" \
  "$here/slurm_job.sh" "${unitoken[@]:1}"
