#!/usr/bin/env bash
# Runs unitoken in several processes on this machine's CPU, as on a pod but small. Starts again on exit code 75.
#
#   launch/cpu_processes.sh --processes 2 train --config quickstart:stage2 --workdir runs/two
#
#   --processes N   how many
#   --devices N     devices each of them pretends to have (default 1)
#   --port P        where process 0 listens (default: some port)
#   --dry-run       print the commands, run nothing
set -euo pipefail
source "$(dirname "$0")/common.sh"

# Below the range from which systems take ports for outgoing connections.
processes='' devices=1 port=$((20000 + RANDOM % 12000))
parse "processes devices port" "" "$@"
require processes 2
whole processes devices port
require_command
need unitoken "activate the environment it is installed in"

processes_once() {
  local i
  for ((i = 0; i < processes; i++)); do
    start env JAX_PLATFORMS=cpu "UNITOKEN_COORDINATOR=localhost:$port" "UNITOKEN_PROCESSES=$processes" \
      "UNITOKEN_PROCESS=$i" "UNITOKEN_CPU_DEVICES=$devices" "${unitoken[@]}"
  done
  wait_all
}

stop_on_signals
rerun processes_once
