# shellcheck shell=bash
# What the launchers share: options, dry runs, processes that stop and start together. To be sourced.

RESUMABLE=75 # exit code of a run that SIGTERM stopped: all is saved, the same command goes on from there
# shellcheck disable=SC2034 # used by those who source this
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
dry_run=''
unitoken=() # `unitoken` and what it is to do

# Prints a script's help: the comment at its top.
usage() { awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"; }

say() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; }

# Ends with a message: nothing was done.
fail() {
  say "$* (--help shows how)"
  exit 2
}

# parse "OPTIONS WITH A VALUE" "OPTIONS WITHOUT" ARGUMENT...
# Sets a variable for each option given (--node-pool X: node_pool), and `unitoken` to what follows them.
parse() {
  local with=" $1 " without=" $2 dry-run " option
  shift 2
  while (($#)); do
    case $1 in
      -h | --help) usage && exit ;;
      --) shift && break ;;
      -*) option=${1%%=*} option=${option#--} ;;
      *) break ;;
    esac
    if [[ $without == *" $option "* ]]; then
      printf -v "${option//-/_}" yes
    elif [[ $with != *" $option "* ]]; then
      fail "unknown option $1"
    elif [[ $1 == *=* ]]; then
      printf -v "${option//-/_}" %s "${1#*=}"
    elif (($# > 1)); then
      printf -v "${option//-/_}" %s "$2" && shift
    else
      fail "$1 needs a value"
    fi
    shift
  done
  unitoken=(unitoken "$@")
}

# require OPTION EXAMPLE: its variable must have a value.
require() {
  local variable=${1//-/_}
  [[ ${!variable} ]] || fail "--$1 is missing, for example --$1 $2"
}

# whole OPTION...: their values must be whole numbers from 1.
whole() {
  local option variable
  for option; do
    variable=${option//-/_}
    [[ ${!variable} =~ ^[1-9][0-9]*$ ]] || fail "--$option is '${!variable}', expected a whole number from 1"
  done
}

require_command() {
  ((${#unitoken[@]} > 1)) || fail "what is unitoken to do? For example: ${0##*/} ... train --config FILE --workdir DIR"
}

# need PROGRAM HINT: it must be on PATH, except in a dry run.
need() { [[ $dry_run ]] || command -v "$1" >/dev/null || fail "$1 is not on PATH: $2"; }

# Words as one line that a shell reads as the same words.
quote() {
  local word line=''
  for word; do
    [[ $word =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]] || word=${word@Q}
    line+="$word "
  done
  printf '%s' "${line% }"
}

# Runs a command; in a dry run prints it instead.
run() {
  if [[ $dry_run ]]; then
    printf '%s\n' "$(quote "$@")"
  else
    "$@"
  fi
}

pids=()           # what `start` has started
stopping=''       # whether a signal told this launcher to stop
seconds_to_stop=60 # given to the others when one has failed

# Starts a command in the background; in a dry run prints it instead.
start() {
  if [[ $dry_run ]]; then
    run "$@"
  else
    "$@" &
    pids+=($!)
  fi
}

# How what was started is told to stop; a launcher may define it anew.
stop() { kill -TERM "${pids[@]}" 2>/dev/null || true; }

# SIGTERM to the launcher reaches the processes. Ctrl-C too: bash shields what runs in the background from it.
stop_on_signals() { trap 'stopping=yes; stop' TERM INT; }

# Waits for all that `start` has started. Returns the first exit code that is neither 0 nor RESUMABLE (the others
# are stopped then: they would wait for the lost one), else RESUMABLE if there was one, else 0.
wait_all() {
  local pid left one code=0 deadline=''
  while ((${#pids[@]})); do
    left=()
    for pid in "${pids[@]}"; do
      if kill -0 "$pid" 2>/dev/null; then
        left+=("$pid")
        continue
      fi
      one=0
      wait "$pid" || one=$?
      ((one == 0)) || ((code != 0 && code != RESUMABLE)) || code=$one
    done
    pids=("${left[@]}")
    ((${#pids[@]})) || break
    if ((code != 0 && code != RESUMABLE)) && [[ ! $deadline ]]; then
      say "one process ended with code $code: stopping the others"
      deadline=$((SECONDS + seconds_to_stop))
      stop
    fi
    [[ ! $deadline ]] || ((SECONDS < deadline)) || kill -KILL "${pids[@]}" 2>/dev/null || true
    sleep 0.5 &
    wait $! || true # a signal ends it
  done
  return "$code"
}

# rerun COMMAND...: again and again while it ends with RESUMABLE, unless this launcher was told to stop.
rerun() {
  local code
  while true; do
    code=0
    "$@" || code=$?
    ((code == RESUMABLE)) && [[ ! $stopping ]] || return "$code"
    say "stopped with everything saved (code $RESUMABLE): starting again"
  done
}

# read_topology v5e:16x16 (as `unitoken plan` takes it): sets tpu_type and runtime_version for Cloud TPU and XPK,
# gke_accelerator and grid for GKE, and chips (of one slice).
# shellcheck disable=SC2034
read_topology() {
  local cores=1 side
  grid=${1#*:}
  [[ $1 == *:* && $grid =~ ^[1-9][0-9]*(x[1-9][0-9]*){1,2}$ ]] || fail "--topology is '$1', expected for example v5e:16x16"
  chips=1
  for side in ${grid//x/ }; do chips=$((chips * side)); done
  case ${1%%:*} in
    v4) tpu_type=v4 runtime_version=tpu-ubuntu2204-base gke_accelerator=tpu-v4-podslice cores=2 ;;
    v5e) tpu_type=v5litepod runtime_version=v2-alpha-tpuv5-lite gke_accelerator=tpu-v5-lite-podslice ;;
    v5p) tpu_type=v5p runtime_version=v2-alpha-tpuv5 gke_accelerator=tpu-v5p-slice cores=2 ;;
    v6e) tpu_type=v6e runtime_version=v2-alpha-tpuv6e gke_accelerator=tpu-v6e-slice ;;
    *) fail "--topology is '$1'; known are v4, v5e, v5p and v6e, for example v5e:16x16" ;;
  esac
  # These names count TensorCores, of which a v4 or v5p chip has two.
  tpu_type+=-$((chips * cores))
}
