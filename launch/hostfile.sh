#!/usr/bin/env bash
# Train on the hosts of a DeepSpeed hostfile, over pdsh and ssh:
#   bash launch/hostfile.sh HOSTFILE configs/large-1m.yaml [key.path=value ...]
# The repository, its environment, the shards and the run directory must be at the same path on every host.
# MASTER_ADDR    address of the first host (default: its name in the hostfile)
# MASTER_PORT    port of the rendezvous (default 29500)
# FORWARD        names of further variables that every node must see; the launcher itself forwards only PYTHON* and NCCL*
# STOP_FILE      file in a place that all hosts share, through which Ctrl-C, SIGTERM and SIGUSR1 ask every rank to finish its
#                step, save and leave (default: in the directory you start this from)
# DS_ACCELERATOR cpu or cuda: what the hosts compute on (default: cpu where this machine has no GPU). On a CPU the hosts
#                get launch/cpu.sh's settings, for as many cores as this machine has
set -euo pipefail
hostfile=${1:?usage: bash launch/hostfile.sh HOSTFILE CONFIG [key.path=value ...]}
shift
port=${MASTER_PORT:-29500}
accelerator=${DS_ACCELERATOR:-$(command -v nvidia-smi >/dev/null && echo cuda || echo cpu)}
if [ "$accelerator" = cpu ]; then
    slots=$(sed -n '/^[^#]*slots=/{s/.*slots=\([0-9]*\).*/\1/p;q;}' "$hostfile")
    # shellcheck source=launch/cpu.sh
    . "$(dirname "${BASH_SOURCE[0]}")/cpu.sh" "${slots:-1}"
fi
# DeepSpeed reads what to forward from the file that DS_ENV_FILE names.
DS_ENV_FILE=$(mktemp)
export DS_ENV_FILE
HYENA_STOP_FILE=${STOP_FILE:-$PWD/.hyena-stop.$$}
export HYENA_STOP_FILE
for name in HYENA_STOP_FILE OMP_NUM_THREADS GLIBC_TUNABLES HYENA_BIND_CORES GLOO_SOCKET_IFNAME DS_ACCELERATOR ${FORWARD:-}; do
    [ -z "${!name:-}" ] || printf '%s=%s\n' "$name" "${!name}" >> "$DS_ENV_FILE"
done
# The relay takes this script's place, and with it the signals; it removes the file at the end.
exec python -m hyena_ds.training.relay --remove "$DS_ENV_FILE" \
    deepspeed --hostfile "$hostfile" ${MASTER_ADDR:+--master_addr "$MASTER_ADDR"} --master_port "$port" \
    --module hyena_ds train "$@"
