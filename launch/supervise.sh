#!/usr/bin/env bash
# Train, and start again after a failure:
#   bash launch/supervise.sh configs/large-1m.yaml [key.path=value ...] [-- LAUNCH COMMAND ...]
# The launch command (default: hyena-ds train with the same config) has to train the same config:
#   bash launch/supervise.sh CONFIG -- bash launch/hostfile.sh HOSTFILE CONFIG
# Hosts of a hostfile that are lost are left out; with supervisor.spare_hosts=1 the last of them waits for that.
set -euo pipefail
exec hyena-ds supervise "$@"
