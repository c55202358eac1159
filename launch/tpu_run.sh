#!/usr/bin/env bash
# Runs unitoken on every host of a TPU slice, or of several, until all have ended. Stopped (SIGTERM, Ctrl-C), it
# tells the hosts to save and stop; exit code 75 then says that the same command goes on from there.
#
#   launch/tpu_run.sh --name unitoken --zone us-west4-a --setup 'cd unitoken_jax && source venv/bin/activate' \
#     train --config stage2 --workdir gs://bucket/stage2
#
#   --name NAME       as given to tpu_create.sh
#   --zone ZONE
#   --slices N        as given to tpu_create.sh (default 1)
#   --setup COMMAND   shell command that each host runs before, so that `unitoken` is on its PATH
#   --project P       default: gcloud's
#   --dry-run         print the commands, run nothing
#
# Other files that the command names are each host's own. ssh keys must be loaded
# (`ssh-add ~/.ssh/google_compute_engine`).
set -euo pipefail
source "$(dirname "$0")/common.sh"

name='' zone='' slices=1 setup='' project=''
parse "name zone slices setup project" "" "$@"
require name unitoken
require zone us-west4-a
whole slices
require_command
need gcloud "install the Google Cloud SDK"

# ssh does not pass signals on, and a process may outlive a lost connection: both need its number.
# shellcheck disable=SC2016 # the host expands it
PID='"${TMPDIR:-/tmp}/unitoken.pid"'
stop_it="pkill -TERM -F $PID"
leftover="if $stop_it 2>/dev/null; then while pkill -0 -F $PID 2>/dev/null; do sleep 1; done; fi"
remote="$leftover; ${setup:+$setup && }echo \$\$ >$PID && exec $(quote "${unitoken[@]}")"

# on_every_slice FUNCTION COMMAND: one ssh a slice, which reaches all hosts of it at one time.
# (`queued-resources ssh` does 64 hosts at a time, one lot after the other: a larger pod would wait for itself.)
on_every_slice() {
  local i node=$name
  for ((i = 0; i < slices; i++)); do
    ((slices == 1)) || node=$name-$i
    "$1" gcloud compute tpus tpu-vm ssh "$node" --zone "$zone" ${project:+--project "$project"} \
      --worker=all --command "$2"
  done
}

stop() { on_every_slice run "$stop_it" >&2 || true; }

seconds_to_stop=300 # jax notices a lost host after 100 seconds
stop_on_signals
on_every_slice start "$remote"
wait_all
