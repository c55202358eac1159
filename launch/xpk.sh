#!/usr/bin/env bash
# Runs unitoken on a GKE cluster that XPK has made. It starts again on exit code 75 and when nodes are taken away.
#
#   launch/xpk.sh --name stage2 --cluster pods --zone us-west4-a --topology v5e:16x16 --image REGISTRY/unitoken:1 \
#     train --config stage2 --workdir gs://bucket/stage2
#
#   --name NAME         of the workload
#   --cluster CLUSTER   as XPK knows it
#   --zone ZONE
#   --topology T        chips of one slice, as for `unitoken plan`: v5e:16x16, v5p:4x4x4, v6e:8x8
#   --image IMAGE       container with unitoken in it (launch/Dockerfile makes one)
#   --storage STORAGE   of `xpk storage attach` or `create`, where the run is not to live on gs://
#   --slices N          how many slices (default 1)
#   --restarts N        at most (default 100)
#   --grace SECONDS     between SIGTERM and the end, in which all is saved (default 600)
#   --project P         default: gcloud's
#   --dry-run           print the command, run nothing
set -euo pipefail
source "$(dirname "$0")/common.sh"

name='' cluster='' zone='' topology='' image='' storage='' slices=1 restarts=100 grace=600 project=''
parse "name cluster zone topology image storage slices restarts grace project" "" "$@"
require name stage2
require cluster pods
require zone us-west4-a
require topology v5e:16x16
require image us-docker.pkg.dev/PROJECT/REPOSITORY/unitoken:1
whole slices restarts grace
require_command
read_topology "$topology"
need xpk "pip install xpk"

# XPK sends SIGTERM to the shell that it starts the command in: `exec` makes that shell unitoken itself.
run xpk workload create --workload "$name" --cluster "$cluster" --zone "$zone" ${project:+--project "$project"} \
  --tpu-type "$tpu_type" --num-slices "$slices" --docker-image "$image" ${storage:+--storage "$storage"} \
  --max-restarts "$restarts" --restart-on-exit-codes "$RESUMABLE" --termination-grace-period-seconds "$grace" \
  --command "exec $(quote "${unitoken[@]}")"
