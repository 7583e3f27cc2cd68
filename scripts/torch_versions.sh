#!/usr/bin/env bash
# Shows that one binary serves every version of torch and that it can be built against each. Builds the wheel
# once, installs it into a fresh environment for each version of torch and runs the operators' tests there;
# runs them again with operators built against that torch's headers. Not part of `make test`: PyPI's torch is
# several gigabytes a version.
#   scripts/torch_versions.sh [VERSION...]      default: 2.10.0 2.11.0 2.13.0
# FLASHOPTIM_TORCH_INDEX chooses where torch comes from (a wheel index such as
# https://download.pytorch.org/whl/cpu; default PyPI), PYTHON the interpreter, WORK a folder for the
# environments (default build/torch-versions).
set -euo pipefail
cd "$(dirname "$0")/.."
versions=("$@")
[ ${#versions[@]} -gt 0 ] || versions=(2.10.0 2.11.0 2.13.0)
work=${WORK:-build/torch-versions}
python=${PYTHON:-python3}
index=()
case "${FLASHOPTIM_TORCH_INDEX:-pypi}" in
    pypi) ;;
    *) index=(--extra-index-url "$FLASHOPTIM_TORCH_INDEX") ;;
esac

mkdir -p "$work"
rm -rf "$work/wheel"
.venv/bin/python -m build --wheel --no-isolation --outdir "$work/wheel" . >"$work/build.log" 2>&1 ||
    { tail -n 20 "$work/build.log" >&2; exit 1; }
wheel=$(echo "$work"/wheel/*.whl)
pins=$(grep -E '^(pytest|safetensors)==' requirements-dev.txt)

failed=0
for version in "${versions[@]}"; do
    environment="$work/torch-$version"
    rm -rf "$environment"
    "$python" -m venv "$environment"
    # shellcheck disable=SC2086  # a list of requirements
    "$environment/bin/pip" install -q --disable-pip-version-check "${index[@]}" "torch==$version" numpy $pins
    "$environment/bin/pip" install -q --disable-pip-version-check --no-deps "$wheel"
    found=$("$environment/bin/python" -c 'import torch; print(torch.__version__)')
    test_with() {  # test_with WHAT PYTHONPATH: the installed wheel is what is tested where that is empty
        if result=$(PYTHONPATH=$2 "$environment/bin/python" -m pytest -q \
                tests/python/test_operators.py tests/python/test_operators_formats.py 2>&1); then
            printf 'torch %-14s %-12s %s\n' "$found" "$1" "$(tail -n 1 <<<"$result")"
        else
            printf '%s\ntorch %s, %s: failed\n' "$result" "$found" "$1"
            failed=1
        fi
    }
    test_with "one binary" ""
    built="$work/built-$version"
    folder=$("$environment/bin/python" -c 'import torch; print(torch.utils.cmake_prefix_path)')/Torch
    if cmake -S . -B "$built" -DCMAKE_BUILD_TYPE=Release -DTorch_DIR="$folder" -DFLASHOPTIM_TORCH=OFF -DFLASHOPTIM_CUDA=OFF \
            -DFLASHOPTIM_BUILD_PYTHON=ON -DFLASHOPTIM_BUILD_TESTS=OFF >"$work/build.log" 2>&1 &&
            cmake --build "$built" --parallel --target flashoptim_operators >>"$work/build.log" 2>&1; then
        test_with "its own" "$PWD/$built/python"
    else
        tail -n 20 "$work/build.log" >&2
        failed=1
    fi
done
exit $failed
