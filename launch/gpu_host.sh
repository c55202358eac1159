#!/usr/bin/env bash
# Runs unitoken on all GPUs of this machine, or on some: one process drives them. Starts again on exit code 75.
#
#   launch/gpu_host.sh train --config stage2 --workdir runs/stage2 --config.mesh.fsdp=8
#
#   --gpus 0,1   only these (default: all)
#   --dry-run    print the command, run nothing
set -euo pipefail
source "$(dirname "$0")/common.sh"

gpus=''
parse "gpus" "" "$@"
require_command
need unitoken "activate the environment it is installed in"

host_once() {
  # A GPU that jax cannot use is an error, instead of a run on the CPU.
  start env JAX_PLATFORMS=cuda ${gpus:+"CUDA_VISIBLE_DEVICES=$gpus"} "${unitoken[@]}"
  wait_all
}

stop_on_signals
rerun host_once
