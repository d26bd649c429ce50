#!/usr/bin/env bash
# One rank on its host, with the settings of that host:  bash launch/rank.sh PROGRAM [ARGUMENT ...]
# launch/hostfile.sh has the deepspeed launcher start it. LOCAL_SIZE    ranks on this host, from the launcher
# DS_ACCELERATOR   cpu or cuda: what the ranks compute on (default: cpu where the host has no nvidia-smi)
# HYENA_DIRECTORY  where it starts (default: here)
set -euo pipefail
if [ "${DS_ACCELERATOR:-$(command -v nvidia-smi >/dev/null && echo cuda || echo cpu)}" = cpu ]; then
    export DS_ACCELERATOR=cpu CUDA_VISIBLE_DEVICES=
    # shellcheck source=launch/cpu.sh
    . "$(dirname "${BASH_SOURCE[0]}")/cpu.sh" "${LOCAL_SIZE:-1}"
fi
cd "${HYENA_DIRECTORY:-.}"
exec "$@"
