#!/usr/bin/env bash
# The same tokens with and without context warmup, one run after another, each one process:
#   bash bench/warmup.sh [key.path=value ...]      settings for all runs
# OUTPUT, RESULTS and SEEDS in the environment change where runs and rows go, and the seeds. A finished run is not repeated.
set -euo pipefail
cd "$(dirname "$0")/.."
output=${OUTPUT:-runs/warmup-experiment}
results=${RESULTS:-bench/results/warmup.json}

hyena-ds prep build configs/prep/quickstart.yaml
runs=()
for seed in ${SEEDS:-1 2 3}; do
    for name in warmup without-warmup; do
        echo "== $name, seed $seed"
        hyena-ds train "configs/experiments/$name.yaml" "name=$name-$seed" "seed=$seed" "output=$output" "$@"
        runs+=("$output/$name-$seed")
    done
done
hyena-ds bench warmup "${runs[@]}" --json "$results"
