#!/usr/bin/env bash
# Runs unitoken on TPU node pools of a GKE cluster that has JobSet. Kubernetes starts it again on exit code 75 and
# when nodes are taken away.
#
#   launch/gke_jobset.sh --name stage2 --topology v5e:16x16 --image REGISTRY/unitoken:1 --spot \
#     train --config stage2 --workdir gs://bucket/stage2
#
#   --name NAME             of the JobSet
#   --topology T            chips of one slice, as for `unitoken plan`: v5e:16x16, v5p:4x4x4, v6e:8x8
#   --image IMAGE           container with unitoken in it (launch/Dockerfile makes one)
#   --claim CLAIM           PersistentVolumeClaim to mount at /shared, where the run is not to live on gs://
#   --slices N              how many slices (default 1)
#   --spot                  only on spot nodes
#   --chips-per-host N      of the node pool's machines (default 4)
#   --service-account SA    of Kubernetes, with access to the data (default: default)
#   --restarts N            at most (default 100)
#   --grace SECONDS         between SIGTERM and the end, in which all is saved (default 600)
#   --namespace NS          default: kubectl's
#   --dry-run               print the command with its YAML, run nothing
set -euo pipefail
source "$(dirname "$0")/common.sh"

name='' topology='' image='' claim='' slices=1 spot='' chips_per_host=4 service_account=default restarts=100 grace=600
namespace=''
parse "name topology image claim slices chips-per-host service-account restarts grace namespace" "spot" "$@"
require name stage2
require topology v5e:16x16
require image us-docker.pkg.dev/PROJECT/REPOSITORY/unitoken:1
whole slices chips-per-host restarts grace
require_command
read_topology "$topology"
((chips % chips_per_host == 0)) ||
  fail "a slice of $chips chips is no whole number of hosts with $chips_per_host: set --chips-per-host"
need kubectl "install it, and get the cluster's credentials"

# Words as a YAML list, each a JSON string.
yaml_list() {
  local word line=''
  for word; do
    word=${word//\\/\\\\} word=${word//\"/\\\"} word=${word//$'\n'/\\n} word=${word//$'\t'/\\t}
    line+="\"$word\", "
  done
  printf '[%s]' "${line%, }"
}

yaml=$(<"$here/gke_jobset.yaml")
[[ $spot ]] || yaml=$(grep -v '# only with --spot' <<<"$yaml")
[[ $claim ]] || yaml=$(grep -v '# only with --claim' <<<"$yaml")
while read -r key value; do
  yaml=${yaml//"@$key@"/"$value"} # in quotes: & is a letter
done <<END
NAME $name
RESTARTS $restarts
SLICES $slices
HOSTS $((chips / chips_per_host))
GRACE $grace
SERVICE_ACCOUNT $service_account
ACCELERATOR $gke_accelerator
GRID $grid
IMAGE $image
CLAIM $claim
CHIPS $chips_per_host
COMMAND $(yaml_list "${unitoken[@]}")
END

create=(kubectl create ${namespace:+--namespace "$namespace"} -f -)
if [[ $dry_run ]]; then
  printf "%s <<'END'\n%s\nEND\n" "$(quote "${create[@]}")" "$yaml"
else
  "${create[@]}" <<<"$yaml"
fi
