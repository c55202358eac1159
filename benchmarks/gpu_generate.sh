#!/usr/bin/env bash
# Measures how fast the 7B model, random weights, draws 512-px images on one GPU; ten minutes at most.
#
#   benchmarks/gpu_generate.sh --out gpu_generate.json      # an H200, or a card of 24 GB for less
#   benchmarks/gpu_generate.sh --only bf16,batch-int8       # some of it
#   benchmarks/gpu_generate.sh --small --out small.json     # tiny, on whatever jax runs on: does it work?
#   benchmarks/gpu_generate.sh --help
#
# Needs a clone of this repository, and Python 3.11 or newer with jax (0.10 or 0.11; on a GPU jax[cuda12] or
# jax[cuda13]), flax and numpy: nothing that reads data, images or checkpoints. PYTHON names another python.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}

if ! lacking=$("$python" -c 'import jax, flax, numpy' 2>&1); then
  printf '%s: %s\n(PYTHON=%s; pip install "jax[cuda12]" flax numpy)\n' \
    "$(basename "$0")" "${lacking##*$'\n'}" "$python" >&2
  exit 2
fi
export PYTHONPATH=$here/..${PYTHONPATH:+:$PYTHONPATH}
# The largest batch takes nearly all of a card; jax would keep a quarter of it for others.
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.95}
exec "$python" "$here/gpu_generate.py" "$@"
