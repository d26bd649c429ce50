#!/usr/bin/env bash
# Train on this machine's devices:  bash launch/local.sh configs/quickstart.yaml [key.path=value ...]
# RANKS       processes to start (default: one a GPU, on a CPU what the config asks for)
# On a CPU `hyena-ds train` gives its ranks the settings of launch/cpu.sh; docs/do/cpu-settings.md has the table.
set -euo pipefail
exec hyena-ds train "$@" ${RANKS:+local_ranks="$RANKS"}
