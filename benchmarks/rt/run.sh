#!/bin/sh
# The peers side by side: sh benchmarks/rt/run.sh [PYTHON of neurodiff's environment]
# One thread each; an environment of its own each, under .venvs/; fits that are there are not repeated.
set -e
cd "$(dirname "$0")"
OURS=${1:-../../.venv/bin/python}
PYTHON312=${PYTHON312:-python3.12} # HSSM 0.5 needs 3.12
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1
export XLA_FLAGS="--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

test -x .venvs/pyddm/bin/pip || python3 -m venv .venvs/pyddm
.venvs/pyddm/bin/pip install -q pyddm==0.9.0
test -x .venvs/hssm/bin/pip || "$PYTHON312" -m venv .venvs/hssm
.venvs/hssm/bin/pip install -q hssm==0.5.0

"$OURS" folds.py
"$OURS" wiener.py
"$OURS" kernel_density.py
.venvs/pyddm/bin/python peer_pyddm.py
.venvs/hssm/bin/python peer_hssm.py ddm
if test -e .results/angle.npz; then # README.md says how to come by the network
    .venvs/hssm/bin/python peer_hssm.py angle
    .venvs/hssm/bin/python peer_hssm.py nuts angle 1
fi
"$OURS" reference.py scipy
.venvs/pyddm/bin/python reference.py PyDDM
.venvs/hssm/bin/python reference.py HDDM
.venvs/hssm/bin/python reference.py HSSM
"$OURS" reference.py write
"$OURS" collect.py
