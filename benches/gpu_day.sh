#!/usr/bin/env bash
# All that is to be known of a GPU, by one command, the most wanted first; see README.md, "On a GPU".
#
#   benches/gpu_day.sh [--device cuda|cpu] WHEELS
#
# WHEELS is a folder with the wheel of this package (`make gpu-wheels` fills dist/gpu with it and Liger-Kernel's): no
# registry is asked. Results go to $OUT (default: gpu-day), each as soon as it is there. A stage that fails, or that
# takes too long, is cut off and named in the table at the end, and the next one runs; all of them together take
# $DAY_SECONDS (default: 540), of which each has its share.
set -u
cd "$(dirname "$0")/.." || exit 2

device=cuda
if [ "${1:-}" = --device ]; then device=${2:-} && shift 2; fi
if [ $# -ne 1 ] || ! compgen -G "$1/*.whl" > /dev/null || [[ ! $device =~ ^(cuda|cpu)$ ]]; then
    echo "usage: benches/gpu_day.sh [--device cuda|cpu] WHEELS: a folder of wheels; got: $device ${*:-}" >&2
    exit 2
fi
wheels=$1
python=${PYTHON:-python3}
out=$(realpath -m "${OUT:-gpu-day}")
mkdir -p "$out"
work=$(mktemp -d)
in_all=${DAY_SECONDS:-540}
began=$SECONDS
# Processes share what is compiled once, and nothing of an earlier day is in the way.
export TRITON_CACHE_DIR=$work/triton TORCHINDUCTOR_CACHE_DIR=$work/inductor PYTHONUNBUFFERED=1
table=() failed=0

# Where a stage writes: $out, or beside it where that takes no more.
room() {
    if { head -c 1000000 /dev/zero > "$out/.room"; } 2> /dev/null; then echo "$out"; else echo "$work"; fi
    rm -f "$out/.room"
}

# stage NAME SHARE COMMAND...: a command for at most SHARE of 540ths of the time, and of what is left.
stage() {
    local name=$1 limit=$(($2 * in_all / 540)) left=$((in_all - (SECONDS - began))) start=$SECONDS code said
    shift 2
    limit=$((limit < left ? limit : left))
    if [ "$limit" -lt 1 ]; then
        table+=("$(printf '%-8s %6s  no time was left' "$name" -)") failed=1
        return 1
    fi
    echo "== $name, at most $limit s: $*"
    # Into a file and not a pipe, which a process that outlives its stage would hold open.
    timeout --kill-after=5 "$limit" "$@" > "$work/$name.txt" 2>&1 < /dev/null
    code=$?
    case $code in
        0) said=ok ;;
        124 | 137) said="cut off after $limit s" failed=1 ;;
        *) said="failed with $code" failed=1 ;;
    esac
    table+=("$(printf '%-8s %4s s  %s' "$name" $((SECONDS - start)) "$said")")
    tail -n 60 "$work/$name.txt"
    { cat "$work"/*.txt > "$out/log.txt"; } 2> /dev/null || echo "log.txt: $out takes no more"
    return $code
}

stage install 40 "$python" -m pip install --quiet --no-index --no-deps --no-compile --disable-pip-version-check \
    --target "$work/site" "$wheels"/*.whl || exit 1
export PYTHONPATH=$work/site:$PWD
cid=("$python" -m cid.cli)
if [ "$device" = cuda ]; then
    tests=(tests/backends/triton tests/backends/test_vectors.py tests/backends/test_compile.py)
    goals=(bench --device cuda --no-chart)
    bound=(kd cross-entropy kd-reverse kd-js context-weights sample accumulate)
    # Another machine's versions may warn of what ours do not: that is no failure here.
    stage tests 150 "$python" -m pytest -q -n 16 -p no:cacheprovider --tb=short -rfE --no-header -W default "${tests[@]}"
    stage whole 75 "${cid[@]}" "${goals[@]}" cid --preset goals --seconds 2 --out "$(room)/goals-cid.json"
    stage goals 110 "${cid[@]}" "${goals[@]}" "${bound[@]}" --preset goals --dtype float32 --dtype bfloat16 \
        --against liger --seconds 1 --no-memory --out "$(room)/goals.json"
    stage tiles 120 "$python" -m benches.tiles --device cuda --out "$(room)/tiles.json"
    stage step 60 "$python" -m benches.step --device cuda --seconds 5 --out "$(room)/step.json"
    stage counters 60 "$python" -m benches.counters "$(ls "$out/goals.json" "$work/goals.json" 2> /dev/null | head -n 1)"
else # the same stages, as far as a CPU goes
    export TRITON_INTERPRET=1
    stage tests 150 "$python" -m pytest -q -n auto -p no:cacheprovider --tb=short -rfE --no-header -W default \
        tests/backends/triton/test_gpu.py
    stage goals 110 "${cid[@]}" bench --preset small --against eager --seconds 0.01 --no-chart --out "$(room)/goals.json"
    stage tiles 120 "$python" -m benches.tiles --seconds 0.01 --out "$(room)/tiles.json" "kd-forward short" class
    stage step 60 "$python" -m benches.step --batch 4 --student cnn-2 --teacher cnn-4 --seconds 0.01 --out "$(room)/step.json"
    stage counters 60 "$python" -m benches.counters --device cpu --once kd 8x10 float32
fi

echo "== the whole day: $((SECONDS - began)) s of $in_all"
printf '%s\n' "${table[@]}"
ls -l "$out"
if compgen -G "$work/*.json" > /dev/null; then
    echo "$out took no more: the rest is in $work"
    exit 1
fi
rm -rf "$work"
exit $failed
