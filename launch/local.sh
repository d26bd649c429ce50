#!/usr/bin/env bash
# Train on this machine's devices:  bash launch/local.sh configs/quickstart.yaml [key.path=value ...]
# RANKS       processes to start (default: one a GPU, on a CPU what the config asks for)
# OMP_NUM_THREADS   threads of each process on a CPU (default: cores / processes)
set -euo pipefail
exec hyena-ds train "$@" ${RANKS:+local_ranks="$RANKS"}
