#!/usr/bin/env bash
# Train on the hosts of a DeepSpeed hostfile (a line each: NAME slots=PROCESSES), over pdsh and ssh:
#   bash launch/hostfile.sh HOSTFILE configs/large-1m.yaml [key.path=value ...]
# Where hosts do not let ssh in, the same on every host, with its place in the hostfile:
#   NO_SSH=1 NODE_RANK=0 bash launch/hostfile.sh HOSTFILE CONFIG
# The repository, its environment, the shards and the run directory must be at the same path on every host.
set -euo pipefail
if [ $# -lt 2 ]; then
    echo "usage: bash launch/hostfile.sh HOSTFILE CONFIG [key.path=value ...]" >&2
    exit 2
fi
# Address of the first host, as the others reach it (default: what its name means here, or `hostname -I` there).
export MASTER_ADDR=${MASTER_ADDR:-}
# Port of the rendezvous, free on the first host.
export MASTER_PORT=${MASTER_PORT:-29500}
# Names of further variables that every rank must see. Those of CUDA, NCCL, gloo, libfabric, UCX, MKL, OpenMP, torch and
# Python go to every host anyway.
export FORWARD=${FORWARD:-}
# A file that every host sources before its ranks start: modules, say, or conda. The hosts' login shell must be bash.
export HOST_SETUP=${HOST_SETUP:-}
# File in a place that all hosts share, through which Ctrl-C, SIGTERM and SIGUSR1 ask every rank to finish its step, save
# and leave (default: in the directory you start this from).
export STOP_FILE=${STOP_FILE:-}
# cpu or cuda: what the ranks compute on (default: each host looks for nvidia-smi).
[ -z "${DS_ACCELERATOR:-}" ] || export DS_ACCELERATOR
# Start the ranks of this host alone, which is number NODE_RANK of the hostfile, from 0.
export NO_SSH=${NO_SSH:-} NODE_RANK=${NODE_RANK:-}
exec python -m hyena_ds.runtime.hostfile "$@"
