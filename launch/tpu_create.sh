#!/usr/bin/env bash
# Asks Cloud TPU for a slice, or several, as one queued resource. Returns at once; `tpu_babysit.sh` waits for it.
#
#   launch/tpu_create.sh --name unitoken --zone us-west4-a --topology v5e:16x16 --spot
#
#   --name NAME       of the queued resource and its node (of several: NAME-0, NAME-1, ...)
#   --zone ZONE
#   --topology T      chips of one slice, as for `unitoken plan`: v5e:16x16, v5p:4x4x4, v6e:8x8
#   --slices N        how many slices (default 1)
#   --spot            cheaper, and may be taken away
#   --runtime V       version of the VMs' software (default: by topology)
#   --project P       default: gcloud's
#   --dry-run         print the command, run nothing
set -euo pipefail
source "$(dirname "$0")/common.sh"

name='' zone='' topology='' slices=1 spot='' runtime='' project=''
parse "name zone topology slices runtime project" "spot" "$@"
require name unitoken
require zone us-west4-a
require topology v5e:16x16
whole slices
((${#unitoken[@]} == 1)) || fail "unknown argument '${unitoken[1]}'"
read_topology "$topology"
need gcloud "install the Google Cloud SDK"

nodes=(--node-id "$name")
((slices == 1)) || nodes=(--node-count "$slices" --node-prefix "$name")
run gcloud compute tpus queued-resources create "$name" --zone "$zone" ${project:+--project "$project"} \
  --accelerator-type "$tpu_type" --runtime-version "${runtime:-$runtime_version}" "${nodes[@]}" ${spot:+--spot}
