#!/usr/bin/env bash
# Sets a machine up for this repository: compiler, libraries and a Python environment in .venv. Builds
# nothing.
#   scripts/setup.sh          for building and running
#   scripts/setup.sh --dev    also for testing and linting
#   scripts/setup.sh --bench  also the optimizers that the benchmark compares with
#   scripts/setup.sh --docs   also Doxygen and Sphinx
# It uses what is there and fetches nothing twice: the second call returns at once and needs no network. As
# root on a machine with apt-get it installs missing Debian packages; elsewhere it names them. PYTHON chooses
# the interpreter of a new .venv. FLASHOPTIM_TORCH_INDEX chooses where torch comes from: a wheel index, or
# `pypi` for PyPI alone. Without it Linux takes PyTorch's CPU index if that can be reached, because PyPI's own
# wheel for x86 brings gigabytes of CUDA libraries.
set -euo pipefail
cd "$(dirname "$0")/.."

dev=false bench=false docs=false
case "${1:-}" in
    "") ;;
    --dev) dev=true ;;
    --bench) bench=true ;;
    --docs) docs=true ;;
    *) sed -n '2,6p' "$0" >&2; exit 2 ;;
esac

# Programs of the environment do not count as the machine's.
venv="$PWD/.venv"
PATH=":$PATH:"; PATH="${PATH//:$venv\/bin:/:}"; PATH="${PATH#:}"; PATH="${PATH%:}"
python="${PYTHON:-python3}"
cxx="${CXX:-c++}"

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }
has() { command -v "$1" >/dev/null 2>&1; }
has_header() { printf '#if !__has_include(<%s>)\n#error\n#endif\n' "$1" | "$cxx" -E -x c++ - >/dev/null 2>&1; }
has_venv() { "$python" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; }
has_cmake() {
    local version
    version=$(cmake --version 2>/dev/null | sed -n '1s/[^0-9]*\([0-9]*\.[0-9]*\).*/\1/p') || return 1
    [ -n "$version" ] && [ "$(printf '%s\n3.22\n' "$version" | sort -V | head -n 1)" = 3.22 ]
}

# One line for each thing: probe | Debian | Fedora | Arch | Homebrew
needs() {
    cat <<'TABLE'
has c++|g++|gcc-c++|gcc|gcc
has make|make|make|make|make
has git|git|git|git|git
has_venv|python3-venv|python3|python|python
has_header nlohmann/json.hpp|nlohmann-json3-dev|json-devel|nlohmann-json|nlohmann-json
has_header CLI/CLI.hpp|libcli11-dev|cli11-devel|cli11|cli11
has_header xxhash.h|libxxhash-dev|xxhash-devel|xxhash|xxhash
has_header fmt/format.h|libfmt-dev|fmt-devel|fmt|fmt
has_header gtest/gtest.h|libgtest-dev|gtest-devel|gtest|googletest
has_header benchmark/benchmark.h|libbenchmark-dev|google-benchmark-devel|benchmark|google-benchmark
TABLE
    ! $docs || echo 'has doxygen|doxygen|doxygen|doxygen|doxygen'
}
# These come from PyPI if the machine has none, or are not needed.
wants() {
    cat <<'TABLE'
has_cmake|cmake|cmake|cmake|cmake
has ninja|ninja-build|ninja-build|ninja|ninja
has ccache|ccache|ccache|ccache|ccache
has pkg-config|pkg-config|pkgconf|pkgconf|pkgconf
TABLE
}
missing() {  # missing TABLE COLUMN: the packages whose probe fails
    local row probe
    "$1" | while IFS= read -r row; do
        probe=${row%%|*}
        [ "$probe" != "has c++" ] || probe="has $cxx"
        $probe || printf '%s\n' "$row" | cut -d'|' -f"$2"
    done
}

install_native() {
    local packages
    packages=$( { missing needs 2; missing wants 2; } | tr '\n' ' ')
    [ -n "$packages" ] || return 0
    if [ "$(id -u)" = 0 ] && has apt-get; then
        say "installing $packages"
        local log; log=$(mktemp)
        # Fetch a package list only if the installation fails without one.
        if ! apt_install "$packages" >"$log" 2>&1 && ! { apt-get -qq update && apt_install "$packages"; } >"$log" 2>&1; then
            tail -n 5 "$log" >&2; rm -f "$log"
            fail "apt-get could not install $packages; see the lines above"
        fi
        rm -f "$log"
        hash -r
    fi
    packages=$(missing needs 2 | tr '\n' ' ')
    [ -z "$packages" ] || fail "missing: ${packages% }; $(how_to_install)"
}
apt_install() {
    # shellcheck disable=SC2086  # a list of packages
    DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $1
}
how_to_install() {
    if has apt-get; then printf 'get them by: sudo apt-get install %s' "$(missing needs 2 | paste -sd ' ' -)"
    elif has dnf; then printf 'get them by: sudo dnf install %s' "$(missing needs 3 | paste -sd ' ' -)"
    elif has pacman; then printf 'get them by: sudo pacman -S %s' "$(missing needs 4 | paste -sd ' ' -)"
    elif has brew; then printf 'get them by: brew install %s' "$(missing needs 5 | paste -sd ' ' -)"
    else printf 'install them with the package manager of this system (the names are those of Debian)'
    fi
}

torch_index() {
    case "${FLASHOPTIM_TORCH_INDEX:-}" in
        pypi) return 0 ;;
        ?*) printf '%s' "$FLASHOPTIM_TORCH_INDEX"; return 0 ;;
    esac
    local cpu=https://download.pytorch.org/whl/cpu
    if [ "$(uname -s)" = Linux ] && "$venv/bin/python" - "$cpu/torch/" >/dev/null 2>&1 <<'PY'
import sys, urllib.request
urllib.request.urlopen(sys.argv[1], timeout=5)
PY
    then printf '%s' "$cpu"; fi
}

install_python() {  # install_python NAME FILE...: installs the requirement files once, and again when they change
    local name=$1; shift
    local stamp="$venv/.setup-$name" wanted
    wanted=$(cat "$@" | cksum; printf '%s' "${FLASHOPTIM_TORCH_INDEX:-}")
    [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ] || return 0
    local arguments=() file index=""
    for file in "$@"; do arguments+=(-r "$file"); done
    if grep -q '^torch==' "$@"; then
        index=$(torch_index)
        [ -z "$index" ] || arguments+=(--extra-index-url "$index")
    fi
    say "installing $* into .venv${index:+, torch from $index}"
    "$venv/bin/python" -m pip install -q --disable-pip-version-check "${arguments[@]}" ||
        fail "pip could not install $*; see the lines above (FLASHOPTIM_TORCH_INDEX chooses another index for torch)"
    printf '%s\n' "$wanted" >"$stamp"
}

install_native
if ! "$venv/bin/python" -c 'import pip' >/dev/null 2>&1; then
    say "making .venv with $("$python" --version)"
    rm -rf "$venv"
    "$python" -m venv "$venv" || fail "$python cannot make a virtual environment"
fi
install_python run requirements.txt
if ! has_cmake || ! has ninja; then install_python build requirements-build.txt; fi
if $dev; then install_python dev requirements-dev.txt; fi
if $bench; then install_python bench requirements-bench.txt; fi
if $docs; then install_python docs requirements-docs.txt; fi
