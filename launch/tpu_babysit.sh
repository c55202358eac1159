#!/usr/bin/env bash
# Keeps a run going on Cloud TPU, spot or not: creates the queued resource where there is none, waits for it, runs
# unitoken on all hosts, creates it anew when it was taken away, and runs the same command again, until that ends
# with 0 (done) or with an error of its own. A new slice is bare: --setup must
# install unitoken and Python 3.11.
#
#   launch/tpu_babysit.sh --name unitoken --zone us-west4-a --topology v5e:16x16 --spot \
#     --setup 'source <(gcloud storage cat gs://bucket/setup.sh)' train --config stage2 --workdir gs://bucket/stage2
#
#   the options of tpu_create.sh and tpu_run.sh, and
#   --poll SECONDS     between looks at the queued resource (default 30)
#   --settle SECONDS   how long after a failure it may take to show that a slice was lost (default 120)
#   --delete           delete the queued resource when done
#   --dry-run          print the commands, run nothing
#
# Stopped (SIGTERM, Ctrl-C), it has the run saved and leaves the queued resource alone.
set -euo pipefail
source "$(dirname "$0")/common.sh"

name='' zone='' topology='' slices=1 spot='' runtime='' project='' setup='' poll=30 settle=120 delete=''
parse "name zone topology slices runtime project setup poll settle" "spot delete" "$@"
require_command
whole poll settle
where=(--zone "$zone" ${project:+--project "$project"})
create=("$here/tpu_create.sh" --name "$name" "${where[@]}" --topology "$topology" --slices "$slices"
  ${runtime:+--runtime "$runtime"} ${spot:+--spot})
work=("$here/tpu_run.sh" --name "$name" "${where[@]}" --slices "$slices" --setup "$setup" "${unitoken[@]:1}")
describe=(gcloud compute tpus queued-resources describe "$name" "${where[@]}" --format 'value(state.state)')
remove=(gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet)

if [[ $dry_run ]]; then
  echo "# Until it is ACTIVE:" && run "${describe[@]}"
  echo "# Where there is none:" && "${create[@]}" --dry-run
  echo "# Where it is SUSPENDED or has FAILED, before that:" && run "${remove[@]}"
  echo "# Then, and again after exit code $RESUMABLE or a lost slice:" && "${work[@]:0:1}" --dry-run "${work[@]:1}"
  exit
fi
"${create[@]}" --dry-run >/dev/null # its arguments are looked at now, not when a slice is lost in the night

pause() { sleep "$1" & wait $! || kill $! || true; } # in the background: a signal ends the wait

# Prints the queued resource's state; NONE: there is none.
look() {
  local answer tries
  for tries in 1 2 3 4 5; do
    if answer=$("${describe[@]}" 2>&1); then
      printf '%s' "$answer" && return
    elif [[ $answer == *NOT_FOUND* ]]; then
      printf NONE && return
    fi
    say "$answer"
    sleep "$poll"
  done
  say "gcloud failed $tries times"
  return 1
}

run_once() { start "${work[@]}" && wait_all; }

lost=0 # ssh connections in a row
stop_on_signals
while true; do
  state=$(look)
  [[ ! $stopping ]] || exit "$RESUMABLE"
  case $state in
    NONE) say "creating $name" && "${create[@]}" ;;
    SUSPENDED | FAILED) say "$name is $state: creating it anew" && "${remove[@]}" && "${create[@]}" ;;
    ACTIVE)
      code=0
      run_once || code=$?
      ((code == 255)) || lost=0
      if ((code == 0)); then
        say "done"
        [[ ! $delete ]] || "${remove[@]}"
        exit 0
      elif [[ $stopping ]]; then
        exit "$code"
      elif ((code == RESUMABLE)); then
        say "stopped with everything saved"
      else
        say "ended with code $code: was a slice lost?"
        pause "$settle"
        state=$(look)
        if [[ $state == ACTIVE ]]; then
          # 255 is ssh's own; anything else is the run's.
          ((code == 255 && ++lost <= 5)) || { say "$name is ACTIVE: an error of the run's own" && exit "$code"; }
        fi
      fi
      continue
      ;;
    *) say "$name is $state" ;;
  esac
  pause "$poll"
done
