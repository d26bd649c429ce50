#!/usr/bin/env bash
# Training through the engine on one card: ZeRO 0 to 3, an interruption and the way on, and a million tokens.
#   bash bench/card/engine.sh zero|graphs|resume|million ...       (FASTA=FILE trains on another genome than the shipped piece of hg38)
# Without a card it is a dry run: the same commands on the CPU, small.
set -uo pipefail
cd "$(dirname "$0")/../.."
out=${OUT:-runs/card}
python=${PYTHON:-python3}
shards=$out/shards
runs=$out/runs
mkdir -p "$out"
failed=0
card=$($python -c 'import torch; print(int(torch.cuda.is_available()))')
hyena() { $python -m hyena_ds "$@"; }
fails() { echo "FAILED $*"; failed=1; }

rm -rf "$shards" "$runs"
prep=(fasta="${FASTA:-assets/hg38_chr2_0-2333275.fa.gz}" output="$shards")
[ -z "${FASTA:-}" ] || prep+=(assembly=GRCh37 workers=8)
hyena prep build configs/prep/quickstart.yaml "${prep[@]}" | tail -n 1
tiny=(configs/tiny-1k.yaml "data.sources.0.shards=$shards" "output=$runs")
if [ "$card" = 1 ]; then micro=256 limit=90; else micro=4 limit=60; tiny+=(stages.0.global_batch=4); fi
tiny+=(stages.0.micro_batch_size=$micro)

zero() { # the same steps under every ZeRO stage, at once: one loss
    local pids=() z
    for z in 0 1 2 3; do
        MASTER_PORT=$((29510 + z)) timeout 120 $python -m hyena_ds train "${tiny[@]}" "name=zero-$z" "zero_stage=$z" \
            stages.0.steps=${STEPS:-20} validation.windows=8 precision=float32 >"$out/zero-$z.log" 2>&1 &
        pids+=($!)
    done
    for z in 0 1 2 3; do wait "${pids[$z]}" || fails "ZeRO $z: $(tail -n 1 "$out/zero-$z.log")"; done
    $python - "$runs" <<'PYTHON'
import json, sys
losses = []
for stage in range(4):
    rows = map(json.loads, open(f"{sys.argv[1]}/zero-{stage}/metrics.jsonl"))
    losses.append([row["loss"] for row in rows if row.get("loss") is not None])
far = max(abs(a - b) for other in losses[1:] for a, b in zip(losses[0], other, strict=True))
print(f"ZeRO 0 to 3: {len(losses[0])} rows, last loss {losses[0][-1]:.6f}, largest difference between stages {far:.1e}")
PYTHON
    [ $? = 0 ] || fails "ZeRO: no losses to compare"
}

graphs() { # the same steps with micro steps as CUDA graphs, and without: one loss, in less time
    [ "$card" = 1 ] || { echo "CUDA graphs: no card"; return; }
    local each
    for each in false true; do
        timeout 90 $python -m hyena_ds train "${tiny[@]}" "name=graphs-$each" cuda_graphs=$each stages.0.micro_batch_size=32 \
            stages.0.steps=${STEPS:-30} validation.windows=8 >"$out/graphs-$each.log" 2>&1 ||
            fails "cuda_graphs=$each: $(tail -n 1 "$out/graphs-$each.log")"
    done
    $python - "$runs" <<'PYTHON' || fails "CUDA graphs: no losses to compare"
import json, sys
rows = []
for each in ("false", "true"):
    found = map(json.loads, open(f"{sys.argv[1]}/graphs-{each}/metrics.jsonl"))
    rows.append([row for row in found if row.get("loss") is not None])
far = max(abs(a["loss"] - b["loss"]) for a, b in zip(*rows, strict=True))
rates = [each[-1]["tokens_per_second"] for each in rows]
print(f"CUDA graphs: {len(rows[0])} rows, largest difference of a loss {far:.1e}; tokens/s without and with {rates[0]:,.0f} {rates[1]:,.0f}")
PYTHON
}

resume() { # interrupted by a signal, and on
    local steps=${STEPS:-4000} first=${FIRST:-45} status
    [ "$card" = 1 ] || steps=40 first=15
    timeout -s TERM "$first" $python -m hyena_ds train "${tiny[@]}" name=long stages.0.steps=$steps >"$out/long-1.log" 2>&1
    status=$?
    tail -n 2 "$out/long-1.log"
    [ $status = 124 ] || [ $status = 0 ] || fails "the first part: exit code $status"
    timeout -s TERM "$limit" $python -m hyena_ds train "${tiny[@]}" name=long stages.0.steps=$steps >"$out/long-2.log" 2>&1
    status=$?
    grep -m 1 -i 'resum\|goes on' "$out/long-2.log"
    tail -n 2 "$out/long-2.log"
    [ $status = 124 ] || [ $status = 0 ] || fails "the second part: exit code $status"
    tail -n 1 "$runs/long/metrics.jsonl"
    cp "$runs/long/metrics.jsonl" "$out/long.jsonl"
}

million() { # configs/large-1m.yaml's last stage
    local length=1000000 more=()
    [ "$card" = 1 ] || length=2048 more=(model.layers=2 model.width=32 model.inner_width=64 model.maximum_context=2050)
    timeout 200 $python -m hyena_ds train configs/large-1m.yaml "data.sources.0.shards=$shards" "output=$runs" name=million \
        activation_policy="${POLICY:-lean}" validation.windows=1 "${more[@]}" \
        "stages=[{context_length: $length, steps: 6, micro_batch_size: 1, global_batch: 2}]" >"$out/million.log" 2>&1 ||
        fails "a million: $(tail -n 1 "$out/million.log")"
    tail -n 3 "$out/million.log"
    tail -n 2 "$runs/million/metrics.jsonl" | cut -c1-400
    cp "$runs/million/metrics.jsonl" "$out/million.jsonl"
}

for part in "${@:-zero}"; do "$part"; done
exit $failed
