#!/usr/bin/env bash
# A bundle on a Jetson: checks the board, installs into a virtual environment, builds an engine set, checks and times it.
#
#   benchmarks/jetson.sh BUNDLE [WORK]            WORK: where the environment, the engines and the reports go [jetson]
#   benchmarks/jetson.sh --dry-run BUNDLE [WORK]  says what it would run, anywhere
#
# MAX_BATCH=8        the largest batch of the engines; OPT_BATCH=1, the one to be fast at
# BATCHES="1 8"      batches to time
# WORKERS=1          engines built at once: more disturb each other's timings, and take more memory
# SET_CLOCKS=1       sudo jetson_clocks before timing, and the clocks as they were afterwards
# POWER_MODE=0       sudo nvpmodel -m 0 before that; unset: the mode is left as it is. Some changes want a reboot
#
# For JetPack 6 and 7: docs/jetson.md. It awaits its first run on a board.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
dry_run=0
if [ "${1:-}" = --dry-run ]; then
  dry_run=1
  shift
fi
if [ $# -lt 1 ] || [ $# -gt 2 ]; then
  sed -n '2,14s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
  exit 2
fi
bundle=$1
work=${2:-jetson}
max_batch=${MAX_BATCH:-8}
opt_batch=${OPT_BATCH:-1}
read -r -a batches <<<"${BATCHES:-1 8}"
clocks=$work/clocks

say() { printf '== %s\n' "$*" >&2; }
fail() {
  printf 'jetson.sh: %s\n' "$*" >&2
  exit 1
}
# Runs a command, or prints it.
run() {
  printf '+ %s\n' "$*" >&2
  [ "$dry_run" = 1 ] || "$@"
}
# Ends the script where something is missing; in a dry run it only says so.
need() {
  local what=$1
  shift
  if "$@" >/dev/null 2>&1; then
    say "$what: found"
  elif [ "$dry_run" = 1 ]; then
    say "$what: not here"
  else
    fail "$what is missing: see docs/jetson.md"
  fi
}

check_board() {
  local release=/etc/nv_tegra_release major=
  [ ! -r "$release" ] || major=$(sed -n '1s/^# R\([0-9]*\).*/\1/p' "$release")
  case $major in
    36) say "Jetson Linux 36: JetPack 6" ;;
    38 | 39) say "Jetson Linux $major: JetPack 7" ;;
    '') [ "$dry_run" = 1 ] || fail "$release does not say that this is a Jetson" ;;
    *) say "Jetson Linux $major: neither JetPack 6 nor 7; going on" ;;
  esac
  need "the bundle's manifest" test -f "$bundle/manifest.json"
  need "the driver, libcuda.so.1" python3 -c 'import ctypes; ctypes.CDLL("libcuda.so.1")'
  need "the system's TensorRT for Python (apt: python3-libnvinfer)" python3 -c 'import tensorrt'
  need "python3-venv" python3 -c 'import venv, ensurepip'
}

install() {
  # The system's packages stay visible: TensorRT for Python comes with JetPack, not from PyPI.
  [ -x "$work/venv/bin/python" ] || run python3 -m venv --system-site-packages "$work/venv"
  # The core takes numpy, click, rich and pydantic; onnx is for building.
  run "$work/venv/bin/python" -m pip install --quiet "$here" 'onnx>=1.21'
}

build() {
  # The cache of plans lies in WORK: a build that was stopped goes on where it was.
  run "$work/venv/bin/rnp-build" "$bundle" -o "$work/engines" --backend tensorrt --flavor tensorrt \
    --max-batch "$max_batch" --opt-batch "$opt_batch" --workers "${WORKERS:-1}" --cache-dir "$work/plans" --overwrite
  run "$work/venv/bin/rnp-inspect" "$work/engines" --check
}

fix_clocks() {
  if [ "${SET_CLOCKS:-1}" != 1 ]; then
    say "SET_CLOCKS=0: times are those of the clocks as they are"
    return
  fi
  [ -z "${POWER_MODE:-}" ] || run sudo nvpmodel -m "$POWER_MODE"
  run rm -f "$clocks" # over an earlier file jetson_clocks asks before it stores
  run sudo jetson_clocks --store "$clocks"
  trap 'run sudo jetson_clocks --restore "$clocks"' EXIT
  run sudo jetson_clocks
}

measure() {
  local batch report
  for batch in "${batches[@]}"; do
    report=$work/bench-$batch.json
    # Random images: the decisions mean nothing. With --data or --penalty rnp-bench takes others.
    printf '+ %s\n' "$work/venv/bin/rnp-bench $work/engines --random --batch $batch --json > $report" >&2
    [ "$dry_run" = 1 ] ||
      "$work/venv/bin/rnp-bench" "$work/engines" --random --batch "$batch" --json >"$report"
  done
  run sudo nvpmodel -q
}

[ "$dry_run" = 1 ] || mkdir -p "$work"
check_board
install
build
fix_clocks
measure
say "done: $work/engines, $work/bench-*.json"
