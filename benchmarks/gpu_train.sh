#!/usr/bin/env bash
# Measures training steps of stages I and II of the 7B model, random weights, on one GPU; ten minutes at most.
#
#   benchmarks/gpu_train.sh --out gpu_train.json            # an H200 holds all 32 layers of both stages
#   benchmarks/gpu_train.sh --small --out small.json        # tiny, on whatever jax runs on: does it work?
#   benchmarks/gpu_train.sh --help                          # batch, layers, remat, attention kernel
#
# Needs a clone of this repository, and Python 3.11 or newer with jax (0.10 or 0.11; on a GPU jax[cuda12] or
# jax[cuda13]), flax, optax and numpy: nothing that reads data, images or checkpoints. PYTHON names another python.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}

if ! lacking=$("$python" -c 'import jax, flax, optax, numpy' 2>&1); then
  printf '%s: %s\n(PYTHON=%s; pip install "jax[cuda12]" flax optax numpy)\n' \
    "$(basename "$0")" "${lacking##*$'\n'}" "$python" >&2
  exit 2
fi
export PYTHONPATH=$here/..${PYTHONPATH:+:$PYTHONPATH}
# A run's state takes nearly all of a card; jax would keep a quarter of it for others.
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.95}
exec "$python" "$here/gpu_train.py" "$@"
