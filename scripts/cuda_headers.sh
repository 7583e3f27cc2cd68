#!/usr/bin/env bash
# Compiles the CUDA backend with the headers of CUDA 12.4, the oldest supported version, if only a newer nvcc
# is available: the host's files with the C++ compiler, the kernels with clang, assembled by the ptxas of
# 12.4. Headers and ptxas come from PyPI.
#   scripts/cuda_headers.sh      CLANG: clang 19 or later (default clang++-19); without it no kernels
# Not part of `make test`. Clang lacks __ldcs, __stcs and __grid_constant__, which CUDA 12.4 has. The first
# two are given to it as ordinary loads and stores; the last is left out.
set -euo pipefail
cd "$(dirname "$0")/.."
work=${WORK:-build/cuda-headers}
clang=${CLANG:-clang++-19}
rm -rf "$work"
mkdir -p "$work/wheels" "$work/cuda"
"${PYTHON:-python3}" -m pip download -q --no-deps --only-binary=:all: --dest "$work/wheels" nvidia-cuda-runtime-cu12==12.4.127 \
    nvidia-cuda-nvcc-cu12==12.4.131 nvidia-curand-cu12==10.3.5.147 nvidia-cuda-cccl-cu12==12.5.39
for wheel in "$work"/wheels/*.whl; do "${PYTHON:-python3}" -m zipfile -e "$wheel" "$work/wheels"; done
for part in cuda_runtime cuda_nvcc curand cuda_cccl; do cp -r "$work/wheels/nvidia/$part/." "$work/cuda"; done
chmod +x "$work/cuda/bin/ptxas"
cat >"$work/shim.h" <<'SHIM'
#if defined(__CUDA__)
template <class T> __device__ T __ldcs(const T* from) { return *from; }
template <class T> __device__ void __stcs(T* to, T value) { *to = value; }
#endif
SHIM

flags=(-std=c++20 -Iinclude -Isrc)
for file in src/cuda/*.cpp src/bindings/capi/c_device.cpp; do
    "${CXX:-c++}" "${flags[@]}" -isystem "$work/cuda/include" -DFLASHOPTIM_WITH_CUDA -Wall -Wextra -Werror -fsyntax-only "$file"
    echo "compiles: $file"
done
if ! command -v "$clang" >/dev/null; then
    echo "cuda_headers: left out: the kernels, which need clang: install it or name one as CLANG" >&2
    exit 3
fi
for architecture in 80 90; do
    for file in src/cuda/*.cu; do
        "$clang" -x cuda "${flags[@]}" --cuda-path="$work/cuda" --cuda-gpu-arch="sm_$architecture" --cuda-device-only -O3 \
            -Wno-unknown-cuda-version -Wno-unknown-attributes -include "$work/shim.h" -c "$file" -o "$work/kernels.o"
        echo "compiles and is assembled for sm_$architecture: $file"
    done
done
