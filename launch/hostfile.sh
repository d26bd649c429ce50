#!/usr/bin/env bash
# Train on the hosts of a DeepSpeed hostfile, over pdsh and ssh:
#   bash launch/hostfile.sh HOSTFILE configs/large-1m.yaml [key.path=value ...]
# The repository, its environment, the shards and the run directory must be at the same path on every host.
# MASTER_ADDR    address of the first host (default: its name in the hostfile)
# MASTER_PORT    port of the rendezvous (default 29500)
# FORWARD        names of variables that every node must see; the launcher itself forwards only PYTHON* and NCCL*
set -euo pipefail
hostfile=${1:?usage: bash launch/hostfile.sh HOSTFILE CONFIG [key.path=value ...]}
shift
port=${MASTER_PORT:-29500}
forward=${FORWARD:-OMP_NUM_THREADS GLOO_SOCKET_IFNAME DS_ACCELERATOR}
# DeepSpeed reads what to forward from .deepspeed_env in the directory that DS_ENV_FILE names.
DS_ENV_FILE=$(mktemp)
export DS_ENV_FILE
trap 'rm -f "$DS_ENV_FILE"' EXIT
for name in $forward; do
    [ -z "${!name:-}" ] || printf '%s=%s\n' "$name" "${!name}" >> "$DS_ENV_FILE"
done
deepspeed --hostfile "$hostfile" ${MASTER_ADDR:+--master_addr "$MASTER_ADDR"} --master_port "$port" \
    --module hyena_ds train "$@"
