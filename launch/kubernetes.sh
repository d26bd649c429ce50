#!/usr/bin/env bash
# Print what a run needs on Kubernetes, for kubectl (1.29 or newer): ConfigMap, Service and Job of kubernetes.yaml
#   IMAGE=registry.example/hyena-ds NODES=4 GPUS=8 bash launch/kubernetes.sh configs/large-1m.yaml [key.path=value ...] \
#       | kubectl apply -f -
# NAME    of all three objects (default hyena)
# IMAGE   with the repository in /opt/hyena-ds, see docs/do/kubernetes.md (default hyena-ds:latest)
# NODES   pods (default 1)
# GPUS    of a pod; 0: ranks compute on the CPU (default 0)
# RANKS   processes of a pod (default: GPUS, or 1)
# CPUS    cores of a pod, shared by its ranks (default: 4 a rank)
# MEMORY  of a pod (default: 32Gi a rank)
# CLAIM   persistent volume claim that all pods can write, mounted at /workspace: shards and runs (default: NAME)
# FORWARD names of further variables of this shell that the ranks must see
set -euo pipefail
config=${1:?usage: bash launch/kubernetes.sh CONFIG [key.path=value ...]}
shift
fits() { # NAME VALUE PATTERN WANTED: what is written into YAML by sed holds nothing that either would read otherwise
    [[ $2 =~ ^($3)$ ]] || {
        printf 'kubernetes.sh: %s: found %q, wanted %s\n' "$1" "$2" "$4" >&2
        exit 2
    }
}
for setting in NODES GPUS RANKS CPUS; do
    fits "$setting" "${!setting:-1}" '[0-9]{1,6}' 'a whole number'
done
fits NAME "${NAME:-hyena}" '[a-z]([-a-z0-9]{0,50}[a-z0-9])?' 'a small letter, then at most 51 of a-z, 0-9 and -'
fits IMAGE "${IMAGE:-x}" '[A-Za-z0-9][A-Za-z0-9._:/@-]*' 'REGISTRY/NAME:TAG'
fits MEMORY "${MEMORY:-1Gi}" '[0-9.]+[A-Za-z]*' 'a size like 32Gi'
fits CLAIM "${CLAIM:-x}" '[a-z0-9]([-.a-z0-9]*[a-z0-9])?' 'the name of a claim'
for variable in ${FORWARD:-}; do
    fits FORWARD "$variable" '[A-Za-z_][A-Za-z0-9_]*' 'names of variables'
    fits "$variable" "${!variable-}" '[^[:cntrl:]]*' 'one line of text'
done
for override; do
    fits override "$override" '[^[:cntrl:]]*' 'one line of text'
done
name=${NAME:-hyena}
nodes=${NODES:-1}
gpus=${GPUS:-0}
ranks=${RANKS:-$((gpus > 0 ? gpus : 1))}
cpus=${CPUS:-$((4 * ranks))}
threads=$((cpus / ranks > 0 ? cpus / ranks : 1))
text() { # a line of YAML text
    printf "%s'%s'\n" "$1" "${2//\'/\'\'}"
}
value() { # of an environment variable
    printf '/name: %s$/{n;s|value: .*|value: "%s"|}\n' "$1" "$2"
}
key() {
    printf 's|\\b%s: .*|%s: %s|\n' "$1" "$1" "$2"
}

printf 'apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: %s\ndata:\n  config.yaml: |2\n' "$name"
sed 's/^/    /' "$config"
printf -- '\n---\n'
sed -f <(
    printf '/^#/d\n'
    value NNODES "$nodes"
    value RANKS "$ranks"
    value OMP_NUM_THREADS "$threads"
    value MASTER_ADDR "$name-0.$name"
    key completions "$nodes"
    key parallelism "$nodes"
    key image "${IMAGE:-hyena-ds:latest}"
    key cpu "$cpus"
    key memory "${MEMORY:-$((32 * ranks))Gi}"
    if [ "$gpus" -gt 0 ]; then key nvidia.com/gpu "$gpus"; else printf '/nvidia.com.gpu/d\n'; fi
    printf 's|claimName: .*|claimName: %s|\n' "${CLAIM:-$name}"
    printf 's/: hyena$/: %s/\n' "$name"
) -e "/config.config.yaml/r "<(for override; do text '            - ' "$override"; done) \
    -e "/^          env:/r "<(for variable in ${FORWARD:-}; do
        text '            - name: ' "$variable"
        text '              value: ' "${!variable}"
    done) "$(dirname "${BASH_SOURCE[0]}")/kubernetes.yaml"
