#!/usr/bin/env bash
# The job that slurm_gpu.sh submits: unitoken in every task, and back into the queue on exit code 75. SLURM runs a
# copy of this file elsewhere, so it stands alone.
set -euo pipefail

# A preempted job's shell may get SIGTERM too; it must live on until the processes have saved.
trap : TERM
# Since SLURM 22.05 srun does not take this from the job.
[[ ! ${SLURM_CPUS_PER_TASK:-} ]] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
code=0
# One that has failed takes the others with it, but not at once: those of a stopped run still save.
srun --kill-on-bad-exit=0 --wait=600 unitoken "$@" || code=$?
if ((code == 75)); then
  echo "stopped with everything saved (code 75): back into the queue"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
