#!/usr/bin/env bash
# Test and measure showtell on a GPU machine, in at most seven minutes on one H100 or H200.
#
#   bench/gpu.sh [--out DIR] [--wheels DIR] [--coco DIR] [--dry-run | --list]
#
#   --out DIR     folder for log.txt, steps.tsv, summary.json and table.md (default: data/bench/gpu)
#   --wheels DIR  wheels of Python packages that the machine lacks, unpacked for this run only
#   --coco DIR    folder in COCO's layout (annotations/, train2017/), to decode full-size images too
#   --dry-run     tiny sizes on the CPU, to check the script: about two minutes on two cores
#   --list        print the commands without running them
#
# Needs bash, coreutils and Python (PYTHON=..., default python3) with torch, torchvision and the
# other dependencies of showtell; showtell itself need not be installed and nothing is downloaded.
# To bring a missing package such as tensorboardX, run this on a machine with a package index:
#
#   python3 -m pip download --no-deps --dest wheels tensorboardX
#
# Every step has a time limit, and a failed step does not stop the later ones. The last output is a
# table for docs/performance.md. The exit status is 1 if a step failed, and 2 if nothing could run.

set -euo pipefail

out='' wheels='' coco='' dry_run='' list=''
while [ $# -gt 0 ]; do
  case $1 in
    --out) out=$2; shift ;;
    --wheels) wheels=$2; shift ;;
    --coco) coco=$2; shift ;;
    --dry-run) dry_run=1 ;;
    --list) list=1 ;;
    *) sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; exit 2 ;;
  esac
  shift
done

absolute() { echo "$(cd "$(dirname "$1")" && pwd)/$(basename "$1")"; }

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PYTHON=$(absolute "$(command -v "${PYTHON:-python3}")")
COCO=${coco:+$(absolute "$coco")}
wheels=${wheels:+$(absolute "$wheels")}
export ROOT PYTHON COCO PYTHONUNBUFFERED=1

# Sizes: the measurement, or the dry run.
export SCALE=1 SECONDS_PER_STAGE=5 ENCODER=resnet50 IMAGE_SIZE=224 TESTS='' LIMIT_FACTOR=1
if [ -n "$dry_run" ]; then
  SCALE=0.001 SECONDS_PER_STAGE=0.2 ENCODER=resnet18 IMAGE_SIZE=64 LIMIT_FACTOR=4
  TESTS='(gru and none and float32 and not bfloat16) or decoded or torchrun'
  export CUDA_VISIBLE_DEVICES='' SHOWTELL_TEST_DEVICE=cpu
fi

# --- the steps ------------------------------------------------------------------------------------

python() { "$PYTHON" "$@"; }
showtell() { "$PYTHON" -m showtell "$@"; }

gpu_tests() {
  python -m pytest -q "$ROOT/tests/test_gpu.py" -k "$TESTS"
}

coco_scale() {
  showtell bench draw epoch decode --coco-scale --scale "$SCALE" --seconds "$SECONDS_PER_STAGE" --data "$DATA"
}

scst() {
  showtell bench scst --coco-scale --scale "$SCALE" --data "$DATA"
}

# The speed of a network does not depend on its weights, so random ones do.
random_weights() {
  python -c 'import sys, torch, torchvision as tv
torch.save(getattr(tv.models, sys.argv[1])().state_dict(), sys.argv[2])' "$ENCODER" "$DATA/random.pth"
}

# The drawn scenes are JPEG files of 224x224 that take as long to decode as photographs.
features() {
  random_weights
  showtell download --dataset scenes --data "$DATA"
  showtell prepare --dataset scenes --data "$DATA"
  showtell features --dataset scenes --data "$DATA" \
    --encoder "$ENCODER" --image-size "$IMAGE_SIZE" --weights "$DATA/random.pth"
  showtell bench features features-tar workers --dataset scenes --data "$DATA" --seconds "$SECONDS_PER_STAGE"
}

# With one GPU: one process of torchrun, beside one without it.
processes() {
  showtell bench train-processes --dataset scenes --data "$DATA" --seconds "$SECONDS_PER_STAGE"
}

coco_images() {
  showtell prepare --dataset coco2017 --source "$COCO" --data "$DATA/full-size"
  showtell features --dataset coco2017 --data "$DATA/full-size" \
    --encoder "$ENCODER" --image-size "$IMAGE_SIZE" --weights "$DATA/random.pth"
  showtell bench workers --dataset coco2017 --data "$DATA/full-size" --seconds "$SECONDS_PER_STAGE"
}

steps() {
  run_step gpu_tests 70
  run_step coco_scale 100
  run_step scst 70
  run_step features 85
  run_step processes 45
  if [ -n "$COCO" ]; then run_step coco_images 45; fi
}

# --- running them ---------------------------------------------------------------------------------

if [ -n "$list" ]; then
  DATA=data
  python() { printf 'python'; printf ' %q' "$@"; echo; }
  showtell() { printf 'showtell'; printf ' %q' "$@"; echo; }
  run_step() { echo "# $1, at most $2 s"; "$1"; }
  steps
  exit
fi

out=${out:-$ROOT/data/bench/gpu}
mkdir -p "$out"
out=$(cd "$out" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export DATA=$work/data
mkdir -p "$DATA" "$work/packages" "$work/path"

# The repository's folder is the package, whatever the folder is called.
ln -s "$ROOT" "$work/path/showtell"
for wheel in ${wheels:+"$wheels"/*.whl}; do
  "$PYTHON" -m zipfile -e "$wheel" "$work/packages"
done
export PYTHONPATH=$work/path:$work/packages${PYTHONPATH:+:$PYTHONPATH}
cd "$work"

"$PYTHON" - <<'PYTHON_CODE' || exit 2
import importlib.util
import sys

def missing(names):
    return [name for name in names.split() if importlib.util.find_spec(name) is None]

needed = missing(
    "torch torchvision numpy PIL h5py pyarrow safetensors filelock xxhash httpx tensorboardX tokenizers"
    " jinja2 matplotlib typer rich pytest"
)
if missing("pycocoevalcap"):
    print("pycocoevalcap is missing: the test of 'showtell eval' is skipped.")
if needed:
    sys.exit(f"Missing Python packages: {', '.join(needed)}. Bring their wheels with --wheels DIR.")
PYTHON_CODE
if [ -z "$dry_run" ] && ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "torch finds no GPU. Try the script on a CPU with --dry-run." >&2
  exit 2
fi

export -f python showtell random_weights gpu_tests coco_scale scst features processes coco_images
failed=''
: >"$out/steps.tsv"
: >"$out/log.txt"

# run_step NAME LIMIT: run a function in its own shell for at most LIMIT seconds.
run_step() {
  local name=$1 limit=$(($2 * LIMIT_FACTOR)) started=$SECONDS status=0
  echo "== $name (at most $limit s)" | tee -a "$out/log.txt"
  timeout --kill-after=5 "$limit" bash -euc "$name" 2>&1 | tee -a "$out/log.txt" || status=$?
  local seconds=$((SECONDS - started)) result=passed
  if [ $status -ne 0 ]; then
    result=failed failed=1
    if [ $status -eq 124 ] || [ $status -eq 137 ]; then result='timed out'; fi
  fi
  printf '%s\t%s\t%s\t%s\n' "$name" "$result" "$seconds" "$limit" >>"$out/steps.tsv"
  echo "== $name: $result after $seconds s" | tee -a "$out/log.txt"
}

SECONDS=0
steps
total=$SECONDS
cp "$DATA/bench/summary.json" "$out/" 2>/dev/null || true
"$PYTHON" -m showtell.bench.gpu_report "$DATA" "$out/steps.tsv" | tee "$out/table.md" || failed=1
if commit=$(git -C "$ROOT" rev-parse --short HEAD 2>/dev/null); then echo "Commit $commit."; fi
if [ -n "$dry_run" ]; then echo "This was a dry run; its figures mean nothing."; fi
echo "Total: $total s. Results are in $out."
[ -z "$failed" ]
