#!/usr/bin/env bash
# Every measurement of bench/RESULTS.md, about 60 minutes on two quiet cores:
#   bash bench/run.sh REFERENCE [NAME ...]
# REFERENCE  a clone of HazyResearch/hyena-dna; names choose among the measurements, without one all run
set -euo pipefail
reference=${1:?usage: bash bench/run.sh CLONE_OF_HYENA_DNA [NAME ...]}
shift
cd "$(dirname "$0")/.."
step() { # step NAME FLAG... : hyena-ds bench step, with its rows in bench/results/NAME.json
    local name=$1
    shift
    [ ${#chosen[@]} -eq 0 ] || [[ " ${chosen[*]} " == *" $name "* ]] || return 0
    echo "== $name"
    hyena-ds bench step "$@" --json "bench/results/$name.json"
}
chosen=("$@")

step 32k --context-length 32768 --policy fastest --precision float32 bfloat16 --allocator tuned default --rounds 5 \
    --reference "$reference" --reference-precision float32
at_256k=(--context-length 262144 --policy lean --precision float32 bfloat16 --reference "$reference"
    --reference-precision float32 --rounds 1)
step 256k "${at_256k[@]}"
# With an allocator that gives nothing back: the fastest for the published code, in half as much memory again.
GLIBC_TUNABLES=glibc.malloc.mmap_threshold=68719476736 step 256k-held "${at_256k[@]}"
# The C functions between the products beside it, with both sides' tensors held.
GLIBC_TUNABLES=glibc.malloc.mmap_threshold=68719476736 step 256k-native --context-length 262144 --policy fastest \
    --precision bfloat16 float32 --kernels native --reference "$reference" --reference-precision float32 --rounds 2 --limit-minutes 40
step 256k-bfloat16 --context-length 262144 --policy lean fastest --precision bfloat16 --parts --rounds 2
step accumulation-1 --context-length 32768
step accumulation-8 --context-length 32768 --accumulation 8 --rounds 2
step engine --context-length 32768 131072 --engine --rounds 5
step 1m --context-length 1048576 --policy leanest --sequence-parallel 1 2 --rounds 1 --limit-minutes 30
step 1m-halves --context-length 1048576 --policy leanest --sequence-parallel 1 2 --halves --parts --rounds 1 \
    --limit-minutes 30
step contexts --context-length 1024 4096 16384 65536 --policy fastest lean \
    --reference "$reference" --transformer --rounds 2 --limit-minutes 3
# The paper's comparison: 2 layers of width 128, one sequence, blocks checkpointed; about 20 minutes.
step transformer --context-length 32768 65536 131072 1048576 --policy lean --transformer checkpointed --rounds 1 --limit-minutes 60
step ranks --context-length 65536 --sequence-parallel 1 2 4 --rounds 3
step 256k-default --context-length 262144 --policy lean --allocator default --rounds 1 --reference "$reference"
step 4m --context-length 4194304 --policy leanest --sequence-parallel 2 --rounds 1 --limit-minutes 60

if [ ${#chosen[@]} -eq 0 ] || [[ " ${chosen[*]} " == *" checkpoint "* ]]; then
    echo "== checkpoint"
    hyena-ds bench checkpoint --json bench/results/checkpoint.json
fi

if [ ${#chosen[@]} -eq 0 ] || [[ " ${chosen[*]} " == *" generate "* ]]; then
    echo "== generate"
    hyena-ds bench generate --json bench/results/generate.json
fi

if [ ${#chosen[@]} -eq 0 ] || [[ " ${chosen[*]} " == *" predict "* ]]; then
    echo "== predict"
    hyena-ds bench predict --reference "$reference" --rounds 9 --json bench/results/predict.json
fi

if [ ${#chosen[@]} -eq 0 ] || [[ " ${chosen[*]} " == *" variants "* ]]; then
    echo "== variants"
    hyena-ds bench variants --json bench/results/variants.json
fi

if [ ${#chosen[@]} -eq 0 ] || [[ " ${chosen[*]} " == *" bytes "* ]]; then
    echo "== bytes"
    hyena-ds bench bytes configs/large-1m.yaml --context-length 1048576 --precision bfloat16 --json bench/results/bytes.json
    for kernels in triton fused; do
        hyena-ds bench bytes configs/large-1m.yaml --context-length 1048576 --precision bfloat16 --policy lean fastest leanest --kernels "$kernels" --json "bench/results/bytes-$kernels.json"
    done
    hyena-ds bench bytes configs/large-1m.yaml --sequence-parallel 8 --precision bfloat16 float32 --json bench/results/bytes-8.json
    for kernels in triton fused; do
        hyena-ds bench bytes configs/large-1m.yaml --sequence-parallel 8 --precision bfloat16 --policy fastest lean leanest --kernels "$kernels" --json "bench/results/bytes-8-$kernels.json"
    done
fi

if [ ${#chosen[@]} -eq 0 ] || [[ " ${chosen[*]} " == *" plan "* ]]; then
    echo "== plan"
    rm -f bench/results/calibration.json bench/results/plan.json
    hyena-ds bench plan --calibration bench/results/calibration.json --json bench/results/plan.json
    hyena-ds plan configs/large-1m.yaml --scaling --plot bench/scaling.png > bench/scaling.md
fi
