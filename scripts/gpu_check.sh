#!/usr/bin/env bash
# One call on a machine with an NVIDIA GPU: builds the CUDA backend for it, runs the tests on the device and
# the benchmark, and writes JSON and tables to bench/results. It takes less than 10 minutes.
#   scripts/gpu_check.sh                 tests and benchmark
#   scripts/gpu_check.sh --demos TEXT    then the demonstrations (up to an hour), into out/: an 8 B model;
#                                        losses on TEXT, a file or folder
#   --dry-run                            says what it would do and what is missing
# It needs a CUDA toolkit, CMake, a C++ compiler and a Python whose torch sees the GPU: PYTHON, or the first
# of python3 and .venv that does (scripts/setup.sh may have put the CPU's torch into .venv). The C++ tests
# need GoogleTest and nlohmann-json, the Python tests pytest, and the comparison its peers (pip install
# flashoptim bitsandbytes). What is missing is left out and named at the end. Exits with 1 if something
# failed, with 3 if tests were left out, else with 0.
set -euo pipefail
cd "$(dirname "$0")/.."

dry_run=0 demos=0 text=""
while [ $# -gt 0 ]; do
    case "$1" in
        --dry-run) dry_run=1 ;;
        --demos)
            demos=1 text=${2:-}
            [ -e "$text" ] || { echo "gpu_check: --demos $text: give a file or folder of text" >&2; exit 2; }
            shift
            ;;
        *) sed -n '4,7p' "$0" >&2; exit 2 ;;
    esac
    shift
done

say() { echo "gpu_check: $*" >&2; }
failed=0 left_out=()
leave_out() {
    left_out+=("$*")
    say "left out: $*"
}
has() { command -v "$1" > /dev/null 2>&1; }
has_header() { printf '#if !__has_include(<%s>)\n#error\n#endif\n' "$1" | "${CXX:-c++}" -E -x c++ - > /dev/null 2>&1; }
sees_gpu() { "$1" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' > /dev/null 2>&1; }
end=570  # seconds for everything but the demonstrations
step() {  # step SECONDS COMMAND...: runs it, or says it; no longer than what is left of the time
    local limit=$1 status=0
    shift
    if [ "$dry_run" = 1 ]; then
        echo "would run (at most $limit s): $*"
        return
    fi
    if [ "$limit" -gt $((end - SECONDS)) ]; then limit=$((end - SECONDS)); fi
    if [ "$limit" -le 0 ]; then
        say "left out for want of time: $*"
        return 1
    fi
    echo "== $*"
    timeout "$limit" "$@" || status=$?
    if [ "$status" = 124 ]; then say "stopped after $limit s: $*"; fi
    return "$status"
}

missing=0
require() {  # require CONDITION WHAT
    if ! eval "$1"; then
        say "missing: $2"
        missing=1
    fi
}
python=${PYTHON:-}
if [ -z "$python" ]; then
    for candidate in python3 .venv/bin/python; do
        if has "$candidate" && sees_gpu "$candidate"; then
            python=$candidate
            break
        fi
    done
fi
require 'has cmake' "cmake"
require 'has "${CXX:-c++}"' "a C++ compiler"
require 'has nvcc || [ -x "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" ]' "nvcc of CUDA 12.4 or later, in PATH or CUDA_HOME"
require 'has nvidia-smi' "nvidia-smi: is there a driver?"
require '[ -n "$python" ] && sees_gpu "$python"' "a Python whose torch sees a GPU: name one as PYTHON"
[ "$dry_run" = 1 ] || [ "$missing" = 0 ] || exit 1
if [ -z "$python" ]; then  # of a dry run
    python=python3
    [ ! -x .venv/bin/python ] || python=.venv/bin/python
fi

# The compute capability without its point, as 90; without a GPU that of an H100.
architecture=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2> /dev/null | head -n 1 | tr -d '. ' || true)
build=build/cuda-check
generator=() torch_folder=() tests=OFF package=OFF
if has ninja; then generator=(-G Ninja); fi
if has_header gtest/gtest.h && has_header nlohmann/json.hpp; then
    tests=ON
else
    leave_out "the C++ tests, which need GoogleTest and nlohmann-json"
fi
torch_is_new='import torch; v = torch.__version__.split("."); assert (int(v[0]), int(v[1])) >= (2, 10)'
if "$python" -c "$torch_is_new" 2> /dev/null; then
    folder=$("$python" -c 'import torch; print(torch.utils.cmake_prefix_path)')
    package=ON torch_folder=(-DTorch_DIR="$folder/Torch")
else
    leave_out "the Python package, which needs torch 2.10 or later"
fi

configure() {
    step 60 cmake -S . -B "$build" "${generator[@]}" "${torch_folder[@]}" --log-level=WARNING -DCMAKE_BUILD_TYPE=Release \
        -DFLASHOPTIM_CUDA=ON -DFLASHOPTIM_CUDA_ARCHITECTURES="${architecture:-90}" -DFLASHOPTIM_TORCH=OFF \
        -DFLASHOPTIM_BUILD_PYTHON="$package" -DFLASHOPTIM_BUILD_TESTS="$tests" -DFLASHOPTIM_BUILD_CHECKPOINT="$tests" \
        -DFLASHOPTIM_BUILD_BENCH=ON -DFLASHOPTIM_INSTALL=OFF -DFLASHOPTIM_WERROR=OFF
}
build() { step 240 cmake --build "$build" --parallel "$(nproc)" --target "$@"; }

# A failed build stops nothing else: the benchmark needs neither torch nor GoogleTest.
if ! configure; then
    failed=1
    leave_out "the C++ tests and the Python package: the build could not be configured with them"
    tests=OFF package=OFF torch_folder=()
    rm -rf "$build"
    configure
fi
bench=ON
if ! build flashoptim_bench_cuda; then
    failed=1 bench=OFF
    leave_out "the benchmark, which did not build"
fi
if [ "$package" = ON ] && ! build flashoptim_operators; then
    failed=1 package=OFF
    leave_out "the Python package, which did not build"
fi
if [ "$tests" = ON ] && ! build cuda_device_test; then
    failed=1 tests=OFF
    leave_out "the C++ tests, which did not build"
fi

export FLASHOPTIM_REQUIRE_GPU=1  # a test that sees no device fails; it is not left out
if [ "$tests" = ON ]; then
    step 90 "$build/tests/cuda/cuda_device_test" --gtest_brief=1 || failed=1
    step 30 "$build/tests/cuda/c_api_on_device_test" "$build" || failed=1
fi
if [ "$package" = ON ]; then
    export PYTHONPATH="$PWD/$build/python${PYTHONPATH:+:$PYTHONPATH}"
    if ! "$python" -c 'import pytest' 2> /dev/null; then
        leave_out "the tests of the Python package, which need pytest"
    else
        step 150 "$python" -m pytest -q tests/python/test_gpu.py tests/python/test_gpu_graphs.py || failed=1
    fi
fi
library="$build/bench/libflashoptim_bench_cuda.so"
if [ "$dry_run" = 1 ]; then
    step 480 "$python" bench/cuda_compare.py --library "$library"
    if [ "$package" = ON ]; then "$python" bench/cuda_compare.py --library "$library" --dry-run; fi
elif [ "$bench" = ON ]; then
    # The time that build and tests have left, less what the benchmark needs to end.
    seconds=$((end - SECONDS - 20 > 30 ? end - SECONDS - 20 : 30))
    step 560 "$python" bench/cuda_compare.py --library "$library" --seconds "$seconds" || failed=1
fi
if [ "$demos" = 1 ]; then
    end=$((SECONDS + 3700))
    step 1900 "$python" bench/gpu_llama.py || failed=1
    step 1800 "$python" bench/gpu_loss.py --text "$text" || failed=1
fi
if [ ${#left_out[@]} -gt 0 ]; then
    printf 'gpu_check: was left out: %s\n' "${left_out[@]}" >&2
    [ "$failed" = 1 ] || [ "$dry_run" = 1 ] || failed=3
fi
exit "$failed"
