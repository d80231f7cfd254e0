#!/usr/bin/env bash
# The whole way once, on rendered scenes: what `make demo` runs.
#
#   docs/demo.sh [OUT]      OUT (default: demo) gets scenes, run folder, pictures and reports
#
# IMAGES and VAL change how many scenes there are, DEVICE where training runs, TRAIN_ARGS adds words
# to its command.
set -euo pipefail

out=${1:-demo}
images=${IMAGES:-400}
validation=${VAL:-80}
device=${DEVICE:-cpu}
read -r -a train_args <<<"${TRAIN_ARGS:-}"

step() {
    printf '\n== %s\n' "$*"
}

started=$SECONDS
mkdir -p "$out"
rm -rf "$out/scenes" "$out/run" "$out/samples" "$out/pictures"

step "1/7 render $images + $validation scenes"
boxseg data scenes "$out/scenes" --images "$images" --val "$validation" --seed 0

step "2/7 train from boxes alone"
boxseg train --config scenes_demo --data "$out/scenes" --out "$out/run" --device "$device" \
    ${train_args[@]+"${train_args[@]}"}

step "3/7 score boxes and masks on held-out scenes"
boxseg eval "$out/run" --data "$out/scenes" --filled-boxes --per-class --json "$out/eval.json"

step "4/7 export; a file gets its name only after it answered like torch"
boxseg export "$out/run" --format onnx --format openvino --data "$out/scenes" \
    --json "$out/export.json"

step "5/7 verify both files again, as anyone can later"
boxseg verify "$out/run/best.onnx" --against "$out/run" --data "$out/scenes" \
    --json "$out/verify_onnx.json"
boxseg verify "$out/run/best_openvino_model" --against "$out/run" --data "$out/scenes" \
    --json "$out/verify_openvino.json"

step "6/7 time both, taking turns"
boxseg bench "$out/run/best.onnx" "$out/run/best_openvino_model" --source "$out/scenes/images" \
    --threads 2 --iters 100 --json "$out/bench.json"

step "7/7 draw"
mkdir -p "$out/samples"
python - "$out" <<'PYTHON'
import json
import shutil
import sys
from pathlib import Path

out = Path(sys.argv[1])
for image in json.loads((out / "scenes/val.json").read_text())["images"][:12]:
    shutil.copy(out / "scenes" / image["file_name"], out / "samples")
PYTHON
boxseg predict "$out/run/best.onnx" "$out/samples" --conf 0.6 --out "$out/pictures"

python docs/demo_table.py "$out" "$((SECONDS - started))"
