#!/usr/bin/env bash
# One command for a machine with a GPU and no network: build, laws, compute-sanitizer, benches, one report.
#
#   bench/gpu.sh                          every part, within 9 minutes
#   bench/gpu.sh build laws               some of: build laws sanitize bench:{overhead,pool,conv_transpose2d,conv2d}
#   bench/gpu.sh --dry-run                no GPU: build, collect the laws, rehearse the benches on tiny shapes
#
# A part that fails or runs out of time does not lose the others. Settings of the GPU are read, never changed.
set -euo pipefail

usage() {
  sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
  cat <<'END'
  --out DIR        where the JSON and the Markdown file go (bench/results/gpu)
  --work DIR       where the build, logs and records of parts go (build/gpu)
  --seconds N      time for the whole (530)
  --archs LIST     CUDA architectures (90a-real)
  -k TEXT          only rows of benches with this in their name
  PYTHON=...       the interpreter whose torch is measured (python3)
  FASTCONV_COMMIT  the commit's name, for a copy without its history
END
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
self=$root/bench/gpu.sh
python=${PYTHON:-python3}
[[ $python != */* ]] || python=$(cd "$(dirname "$python")" && pwd)/${python##*/} # parts run elsewhere
out=$root/bench/results/gpu
work=$root/build/gpu
total=530
archs=90a-real
pattern=
dry=()
all=(build laws sanitize bench:overhead bench:pool bench:conv_transpose2d bench:conv2d)
parts=()
while (($#)); do
  case $1 in
    --dry-run) dry=(--dry-run) ;;
    --out | --work | --seconds | --archs | -k)
      [[ $# -ge 2 ]] || { echo "$1: expected a value" >&2; exit 2; }
      case $1 in
        --out) out=$2 ;;
        --work) work=$2 ;;
        --seconds) total=$2 ;;
        --archs) archs=$2 ;;
        -k) pattern=$2 ;;
      esac
      shift
      ;;
    -h | --help) usage; exit 0 ;;
    *)
      [[ " ${all[*]} " == *" $1 "* ]] || { echo "$1: expected one of: ${all[*]}" >&2; exit 2; }
      parts+=("$1")
      ;;
  esac
  shift
done
((${#parts[@]})) || parts=("${all[@]}")
[[ $total =~ ^[1-9][0-9]*$ ]] || { echo "--seconds: expected a whole number, got '$total'" >&2; exit 2; }
mkdir -p "$work" "$out"
work=$(cd "$work" && pwd)
out=$(cd "$out" && pwd)
site=$work/site
# The toolkit's tools are often installed, but not on PATH.
for folder in "${CUDA_HOME:-/usr/local/cuda}"/{bin,compute-sanitizer}; do
  [[ ! -d $folder ]] || PATH=$PATH:$folder
done
# The built package comes first: the source tree has no compiled part. Parts run in $work for the same reason.
export PATH PYTHONPATH=$site:$root PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 FASTCONV_REQUIRE_NATIVE=1

part_build() {
  local cuda=ON
  if ((${#dry[@]})) && ! command -v nvcc >/dev/null; then
    cuda=OFF
    echo "dry run without nvcc: built without CUDA"
  fi
  FASTCONV_CUDA=$cuda FASTCONV_CUDA_ARCHS=$archs "$python" -m pip install --no-index --no-build-isolation \
    --no-deps --no-warn-script-location --disable-pip-version-check --upgrade --target "$site" \
    -C build-dir="$work/cmake" "$root"
}

part_laws() {
  # Where a device is missing, or fastconv's CUDA part, laws would be skipped or torch would serve: neither is a pass.
  ((${#dry[@]})) || "$python" -m bench.gpu check
  local options=(-m cuda -q --tb=short -p no:cacheprovider -p no:hypothesispytest --continue-on-collection-errors -c "$root/pyproject.toml" --rootdir "$root")
  local laws=("$root/tests" "$root/bench/gpu/device_laws.py")
  # These are not about the device, or need packages that a bare machine lacks.
  for name in opinfo layering documentation {attention_torch,enable,multihead_attention} cuda_{adaptive_max,averages,emulation,instructions,max_unpool,planted,pointwise,rooms}; do
    options+=(--ignore "$root/tests/test_$name.py")
  done
  if ((${#dry[@]})); then
    "$python" -m pytest "${options[@]}" --collect-only "${laws[@]}"
    return
  fi
  if "$python" -c "import xdist" 2>/dev/null; then
    options+=(-n "$(($(nproc) < 8 ? $(nproc) : 8))" --maxfail 200)
  fi
  "$python" -m pytest "${options[@]}" "${laws[@]}"
}

part_sanitize() {
  if ((${#dry[@]})); then
    "$python" -m bench.gpu sanitize --dry-run
    return
  fi
  local failed=0 each=$((seconds / 3)) summary="" code
  for tool in memcheck racecheck synccheck; do
    echo "== $tool"
    # Without torch's cache every tensor is an allocation of its own: memcheck sees where it ends.
    code=0
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout -s INT -k 10 $((each - 2)) compute-sanitizer --tool "$tool" \
      --error-exitcode 99 --print-limit 20 "$python" -m bench.gpu sanitize --seconds $((each / 3)) || code=$?
    case $code in
      0) summary+=", $tool clean" ;;
      99) summary+=", $tool found errors" ;;
      124 | 137) summary+=", $tool out of time" ;;
      *) summary+=", $tool exited with $code" ;;
    esac
    ((code == 0)) || failed=1
  done
  echo "summary: ${summary#, }"
  return "$failed"
}

part_bench() {
  "$python" -m bench.gpu bench "$1" --work "$work" --seconds $((seconds > 30 ? seconds - 15 : 10)) -k "$pattern" "${dry[@]}"
}

# The most that a part may take; what an earlier one leaves goes to conv2d, which has rows for hours.
budget() {
  case $1 in
    build) echo 150 ;;
    laws) echo 100 ;;
    sanitize) echo 105 ;;
    bench:overhead) echo 30 ;;
    bench:pool) echo 50 ;;
    bench:conv_transpose2d) echo 25 ;;
    *) echo "$total" ;;
  esac
}

run_part() { # name, in a process of its own: see the end of the file
  cd "$work"
  case $1 in
    build) part_build ;;
    laws) part_laws ;;
    sanitize) part_sanitize ;;
    bench:*) part_bench "${1#bench:}" ;;
  esac
}

if [[ -n ${FASTCONV_GPU_PART:-} ]]; then # a part under `timeout`: this file runs itself
  seconds=$FASTCONV_GPU_SECONDS
  part=$FASTCONV_GPU_PART
  unset FASTCONV_GPU_PART FASTCONV_GPU_SECONDS
  run_part "$part"
  exit
fi

: >"$work/parts.tsv"
status=0
for part in "${parts[@]}"; do
  begin=$SECONDS
  left=$((total - SECONDS - 10))
  seconds=$total # rehearsals have the whole for each
  ((${#dry[@]})) || seconds=$(budget "$part")
  ((seconds <= left)) || seconds=$left
  stem=$work/${part/:/-}
  rm -f "$stem.json" "$stem.log"
  if ((seconds < 15)); then
    result=skipped detail="no time left"
  elif [[ $part != build && ! -d $site/fastconv ]]; then
    result=skipped detail="nothing is built: run the part build"
  else
    echo "== $part (at most $seconds s)"
    code=0
    FASTCONV_GPU_PART=$part FASTCONV_GPU_SECONDS=$seconds timeout -s INT -k 10 "$seconds" \
      bash "$self" "${dry[@]}" --out "$out" --work "$work" --archs "$archs" -k "$pattern" \
      >"$stem.log" 2>&1 || code=$?
    detail=
    case $code in
      0) result=passed ;;
      124 | 137) result=failed detail="out of time after $seconds s" ;;
      *) result=failed ;;
    esac
    if [[ $result == failed ]]; then
      tail -n 15 "$stem.log"
    elif ((${#dry[@]})) && [[ $part != build ]]; then
      result="not yet run"
    fi
  fi
  [[ $result != failed ]] || status=1
  [[ $result != skipped ]] || ((${#dry[@]})) || status=1
  printf '%s\t%s\t%s\t%s\n' "$part" "$result" $((SECONDS - begin)) "$detail" >>"$work/parts.tsv"
done
cd "$work"
"$python" -m bench.gpu report --work "$work" --out "$out" "${dry[@]}"
exit $status
