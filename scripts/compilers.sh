#!/usr/bin/env bash
# Builds the core, checkpoints and the C interface with every compiler that the README names, and runs their
# tests: the oldest and newest GCC and Clang of this Debian, Clang with libc++, and Zig's Clang with musl for
# x86 and 64-bit ARM. Ends with a table.
#   scripts/compilers.sh [NAME...]   all of them, or those named:
#       gcc-oldest gcc-newest clang-oldest clang-newest libc++-oldest libc++-newest
#       zig-x86_64-linux-musl zig-aarch64-linux-musl zig-aarch64-linux-gnu
# As root on Debian missing compilers are installed; elsewhere they are named and left out. Zig comes from
# PyPI into build/compilers. Programs for another processor run under qemu-user if it is installed. Each
# compiler takes about as long as `make build`. Exit status: 0 if all that were tried passed, 1 if one failed,
# 3 if none was tried.
set -uo pipefail
cd "$(dirname "$0")/.."
work=$PWD/build/compilers
mkdir -p "$work"
jobs=${CMAKE_BUILD_PARALLEL_LEVEL:-$(getconf _NPROCESSORS_ONLN)}
# The oldest that cmake/FlashOptimCompile.cmake takes.
oldest_gcc=11 oldest_clang=14 oldest_libcxx=16
failed=0 tried=0
table=("$(printf '%-24s %-34s %-8s %s' name compiler built tests)")

has() { command -v "$1" >/dev/null 2>&1; }
newest() {  # newest PATTERN: the highest version of a package family, installed or to be had
    { apt-cache search --names-only "^$1[0-9]+\$" 2>/dev/null | cut -d' ' -f1; compgen -c "$1" | grep -E "^${1//+/\\+}[0-9]+\$"; } |
        sed "s/.*-//" | sort -n | tail -n 1
}
provide() {  # provide COMMAND PACKAGE...: installs where that can be done
    if ! has "$1" || { [ $# -gt 2 ] && ! dpkg -s "${@:2}" >/dev/null 2>&1; }; then
        if [ "$(id -u)" = 0 ] && has apt-get; then
            DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "${@:2}" >"$work/apt.log" 2>&1 ||
                { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "${@:2}"; } \
                    >"$work/apt.log" 2>&1
        fi
    fi
    has "$1"
}
row() { table+=("$(printf '%-24s %-34s %-8s %s' "$1" "$2" "$3" "$4")"); }

# GoogleTest is compiled anew by compilers whose standard library is not that of Debian's; its sources come
# with libgtest-dev.
googletest() {  # googletest FOLDER CMAKE_OPTION...
    local folder=$1; shift
    [ -d "$folder/installed/lib" ] && return 0
    cmake -S /usr/src/googletest -B "$folder/googletest" -G Ninja -DBUILD_GMOCK=OFF -DCMAKE_INSTALL_PREFIX="$folder/installed" \
        -DCMAKE_INSTALL_LIBDIR=lib -DCMAKE_CXX_STANDARD=17 "$@" &&
        cmake --build "$folder/googletest" --parallel "$jobs" --target install
}
# nlohmann-json alone: beside it in /usr/include lie headers of another C library.
json() {
    mkdir -p "$work/json/include"
    cp -rLn /usr/include/nlohmann "$work/json/include/" 2>/dev/null
    cat >"$work/json/nlohmann_jsonConfig.cmake" <<'CMAKE'
add_library(nlohmann_json::nlohmann_json INTERFACE IMPORTED)
set_target_properties(nlohmann_json::nlohmann_json PROPERTIES
    INTERFACE_INCLUDE_DIRECTORIES "${CMAKE_CURRENT_LIST_DIR}/include")
set(nlohmann_json_VERSION 3.10)
set(nlohmann_json_FOUND TRUE)
CMAKE
}

try() {  # try NAME CC CXX OWN_LIBRARY CMAKE_OPTION...: OWN_LIBRARY is yes where GoogleTest has to be compiled anew
    local name=$1 cc=$2 cxx=$3 own=$4; shift 4
    local build="$work/$name" log="$work/$name.log" version built=no passed=-
    local options=(-DCMAKE_C_COMPILER="$cc" -DCMAKE_CXX_COMPILER="$cxx" "$@")
    tried=$((tried + 1))
    version=$("$cxx" --version 2>/dev/null | sed -n 1p | sed 's/ (.*)//' | cut -c1-32)
    echo "== $name: $version"
    : >"$log"
    if [ "$own" = yes ]; then
        googletest "$build" "${options[@]}" >>"$log" 2>&1 || { row "$name" "$version" no "GoogleTest"; failed=1; tail -n 5 "$log"; return; }
        options+=(-DGTest_ROOT="$build/installed" -DCMAKE_PREFIX_PATH="$build/installed" -DCMAKE_DISABLE_FIND_PACKAGE_OpenMP=ON)
    fi
    if cmake --preset no-torch -B "$build/build" --log-level=WARNING "${options[@]}" -DFLASHOPTIM_WERROR=OFF \
            -DFLASHOPTIM_BUILD_BENCH=OFF >>"$log" 2>&1 && cmake --build "$build/build" --parallel "$jobs" >>"$log" 2>&1; then
        built=yes
        if ctest --test-dir "$build/build" --output-on-failure -j "$jobs" ${FILTER:+-R "$FILTER"} >>"$log" 2>&1; then
            passed=$(sed -n 's/.*tests failed out of \([0-9]*\)/\1 passed/p' "$log" | tail -n 1)
        else
            passed=$(grep -E 'tests failed out of' "$log" | tail -n 1); failed=1
            grep -E '\(Failed\)|\(Not Run\)|SEGFAULT|Timeout' "$log" | head
        fi
    else
        grep -E 'error|Error' "$log" | head -n 5
        failed=1
    fi
    row "$name" "$version" "$built" "${passed:-none were found}"
}

try_debian() {  # try_debian NAME FAMILY VERSION [PACKAGE...]
    local name=$1 family=$2 version=$3; shift 3
    local cc=gcc-$version cxx=g++-$version options=() own=no
    [ "$family" = gcc ] || { cc=clang-$version cxx=clang++-$version; }
    if [ "$family" = libc++ ]; then
        options=(-DCMAKE_CXX_FLAGS=-stdlib=libc++) own=yes
    fi
    if [ -z "$version" ] || ! provide "$cxx" "${family/libc++/clang}-$version" "$@"; then
        row "$name" "${cxx%-}" missing "apt-get install ${family/libc++/clang}-$version $*"; return
    fi
    try "$name" "$cc" "$cxx" "$own" "${options[@]}"
}

zig() {  # zig TARGET: Clang, libc++ and musl or glibc in one package
    local target=$1 name="zig-$1" folder="$work/zig" machine=${1%%-*} options=() tool
    if [ ! -d "$folder/ziglang" ] && ! "${PYTHON:-python3}" -m pip install -q --target "$folder" ziglang >"$work/zig.log" 2>&1; then
        row "$name" zig missing "pip install ziglang"; return
    fi
    for tool in cc c++; do
        printf '#!/bin/sh\nexec "%s/ziglang/zig" %s -target %s "$@"\n' "$folder" "$tool" "$target" >"$work/$name-$tool"
        chmod +x "$work/$name-$tool"
    done
    printf '#!/bin/sh\nexec "%s/ziglang/zig" ar "$@"\n' "$folder" >"$work/zig-ar"
    printf '#!/bin/sh\nexec "%s/ziglang/zig" ranlib "$@"\n' "$folder" >"$work/zig-ranlib"
    chmod +x "$work/zig-ar" "$work/zig-ranlib"
    json
    options=(-DCMAKE_AR="$work/zig-ar" -DCMAKE_RANLIB="$work/zig-ranlib" -Dnlohmann_json_DIR="$work/json"
        -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR="$machine" -DCMAKE_TRY_COMPILE_TARGET_TYPE=STATIC_LIBRARY)
    case $target in *musl) options+=(-DCMAKE_EXE_LINKER_FLAGS=-static) ;; esac
    if [ "$machine" != "$(uname -m)" ]; then
        if ! provide "qemu-$machine" qemu-user; then
            row "$name" zig missing "apt-get install qemu-user"; return
        fi
        options+=(-DCMAKE_CROSSCOMPILING_EMULATOR="$(command -v "qemu-$machine")")
        # The exhaustive sweeps would take the emulator hours.
        FILTER=${FILTER:-'^(core_test|checkpoint_test|c_api)'} try "$name" "$work/$name-cc" "$work/$name-c++" yes "${options[@]}"
        return
    fi
    try "$name" "$work/$name-cc" "$work/$name-c++" yes "${options[@]}"
}

one() {
    local clang
    case $1 in
        gcc-oldest) try_debian "$1" gcc "$oldest_gcc" g++-"$oldest_gcc" ;;
        gcc-newest) try_debian "$1" gcc "$(newest 'g++-')" g++-"$(newest 'g++-')" ;;
        clang-oldest) try_debian "$1" clang "$oldest_clang" ;;
        clang-newest) try_debian "$1" clang "$(newest 'clang-')" ;;
        libc++-oldest) try_debian "$1" libc++ "$oldest_libcxx" libc++-"$oldest_libcxx"-dev libc++abi-"$oldest_libcxx"-dev ;;
        libc++-newest) clang=$(newest 'clang-'); try_debian "$1" libc++ "$clang" libc++-"$clang"-dev libc++abi-"$clang"-dev ;;
        zig-*) zig "${1#zig-}" ;;
        *) sed -n '5,7p' "$0" >&2; exit 2 ;;
    esac
}

[ $# -gt 0 ] || set -- gcc-oldest gcc-newest clang-oldest clang-newest libc++-oldest libc++-newest \
    zig-x86_64-linux-musl zig-aarch64-linux-musl
for name in "$@"; do one "$name"; done
printf '%s\n' "" "${table[@]}" "The logs are in build/compilers/NAME.log."
[ "$tried" -gt 0 ] || exit 3
exit "$failed"
