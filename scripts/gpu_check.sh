#!/usr/bin/env bash
# One call on a machine with an NVIDIA GPU: builds the CUDA backend for it, runs the tests on the device and the benchmark, and
# leaves JSON and a table in bench/results. Needs what scripts/setup.sh --dev installs, for the PyTorch package a torch with CUDA, and
# for the comparison the peers too (pip install flashoptim bitsandbytes). Takes less than 10 minutes; --dry-run says what it would do and what is missing.
set -euo pipefail
cd "$(dirname "$0")/.."

dry_run=0
build=build/cuda
python=.venv/bin/python
[ -x "$python" ] || python=python3
case "${1:-}" in
    "") ;;
    --dry-run) dry_run=1 ;;
    *)
        echo "usage: scripts/gpu_check.sh [--dry-run]" >&2
        exit 2
        ;;
esac

step() {  # step SECONDS COMMAND...: runs it, or says it
    local limit=$1
    shift
    if [ "$dry_run" = 1 ]; then
        echo "would run (at most $limit s): $*"
    else
        echo "== $*"
        timeout "$limit" "$@"
    fi
}

missing=0
for tool in cmake nvcc nvidia-smi "$python"; do
    if ! command -v "$tool" > /dev/null && ! { [ "$tool" = nvcc ] && [ -x "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" ]; }; then
        echo "gpu_check: $tool is missing" >&2
        missing=1
    fi
done
if [ "$dry_run" = 0 ] && [ "$missing" = 1 ]; then
    exit 1
fi

# The compute capability without its point, as 90; the newest known where there is no GPU to ask.
architecture=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2> /dev/null | head -n 1 | tr -d '. ' || true)
generator=()
if command -v ninja > /dev/null; then generator=(-G Ninja); fi

# The PyTorch package is tested where torch has this GPU.
torch=$("$python" -c 'import torch; print(torch.utils.cmake_prefix_path if torch.cuda.is_available() else "")' 2> /dev/null || true)
package=(-DFLASHOPTIM_BUILD_PYTHON=OFF) targets=(cuda_device_test flashoptim_bench_cuda)
if [ -n "$torch" ]; then
    package=(-DFLASHOPTIM_BUILD_PYTHON=ON -DTorch_DIR="$torch/Torch")
    targets+=(flashoptim_operators)
else
    echo "gpu_check: without the PyTorch package: $python has no torch with a GPU" >&2
fi

step 60 cmake -S . -B "$build" "${generator[@]}" --log-level=WARNING -DCMAKE_BUILD_TYPE=Release -DFLASHOPTIM_CUDA=ON \
    -DFLASHOPTIM_CUDA_ARCHITECTURES="${architecture:-90}" -DFLASHOPTIM_TORCH=OFF "${package[@]}" \
    -DFLASHOPTIM_BUILD_TESTS=ON -DFLASHOPTIM_BUILD_BENCH=ON -DFLASHOPTIM_INSTALL=OFF
step 300 cmake --build "$build" --parallel --target "${targets[@]}"
step 120 "$build/tests/cuda/cuda_device_test" --gtest_brief=1
if [ -n "$torch" ]; then
    step 180 env PYTHONPATH="$build/python" "$python" -m pytest -q tests/python/test_gpu.py
fi
if [ "$dry_run" = 1 ]; then
    step 540 "$python" bench/cuda_compare.py
    "$python" bench/cuda_compare.py --dry-run
else
    # What the build and the tests have left of ten minutes, less what a case may take that has just begun.
    step 540 "$python" bench/cuda_compare.py --minutes "$(((540 - SECONDS) / 60 > 2 ? (540 - SECONDS) / 60 - 1 : 1))"
fi
