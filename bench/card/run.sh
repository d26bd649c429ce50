#!/usr/bin/env bash
# All that is worth knowing of a card, in three parts of at most ten minutes: bash bench/card/run.sh [1] [2] [3]
# Logs and JSON go to OUT (runs/card). Without a card it is a dry run on the CPU.
set -uo pipefail
cd "$(dirname "$0")/../.."
export OUT=${OUT:-runs/card} PYTHON=${PYTHON:-python3} PYTHONUNBUFFERED=1 OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}
mkdir -p "$OUT"
failed=0
part() { # part NAME SECONDS COMMAND...
    local name=$1 limit=$2
    shift 2
    echo "== $name"
    timeout "$limit" "$@" 2>&1 | tee "$OUT/$name.log" | cut -c1-1200 || failed=1
}
command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
for number in "${@:-1}"; do
    case $number in
    1)
        part correct 240 "$PYTHON" -m bench.card.correct
        part kernels 120 "$PYTHON" bench/card/kernels.py --json "$OUT/kernels.json"
        part zero 150 bash bench/card/engine.sh zero
        ! command -v compute-sanitizer >/dev/null ||
            part memcheck 90 compute-sanitizer --tool memcheck "$PYTHON" -m bench.card.ranks
        ;;
    2)
        part ceilings 120 "$PYTHON" -m bench.card.ceilings
        part steps 240 "$PYTHON" -m bench.card.steps
        part transformer 240 "$PYTHON" -m hyena_ds bench step --context-length ${LENGTHS:-16384 131072 1048576} --width 128 \
            --layers 2 --policy fastest lean --precision bfloat16 --transformer --rounds 3 --live --limit-minutes 0.7 \
            --json "$OUT/transformer.json"
        ;;
    3)
        part engine 500 bash bench/card/engine.sh graphs resume million
        ;;
    esac
done
exit $failed
