#!/usr/bin/env bash
# Train under torchrun, on one machine or with the same command on each of several:
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=first.example bash launch/torchrun.sh configs/large-1m.yaml [key.path=value ...]
# RANKS        processes on this machine, the same number everywhere (default: one a GPU, without a GPU 1)
# NNODES       machines (default 1)
# NODE_RANK    number of this machine, from 0 (default: JOB_COMPLETION_INDEX, which Kubernetes sets, else 0)
# MASTER_ADDR  address of machine 0; of one machine always 127.0.0.1
# MASTER_PORT  port of the rendezvous there (default 29500)
# PYTHON       the interpreter that has hyena-ds (default: python)
# Ctrl-C, SIGTERM and SIGUSR1 to one of them stop the run on all. The exit code is the ranks' own, as docs/do/stop-and-restart.md lists.
set -euo pipefail
python=${PYTHON:-python}
if [ "${DS_ACCELERATOR:-}" != cpu ] && command -v nvidia-smi >/dev/null; then
    ranks=${RANKS:-gpu}
else
    ranks=${RANKS:-1}
    export DS_ACCELERATOR=${DS_ACCELERATOR:-cpu}
    # shellcheck source=launch/cpu.sh
    . "$(dirname "${BASH_SOURCE[0]}")/cpu.sh" "$ranks"
fi
# On one machine nothing has to be reached from another: the store, like all else of the run, listens on loopback.
[ "${NNODES:-1}" != 1 ] || MASTER_ADDR=127.0.0.1
exec "$python" -m hyena_ds.runtime.relay "$python" -m hyena_ds.runtime.torchrun \
    --nnodes "${NNODES:-1}" --node-rank "${NODE_RANK:-${JOB_COMPLETION_INDEX:-0}}" --nproc-per-node "$ranks" \
    --master-addr "${MASTER_ADDR:-127.0.0.1}" --master-port "${MASTER_PORT:-29500}" -m hyena_ds train "$@"
