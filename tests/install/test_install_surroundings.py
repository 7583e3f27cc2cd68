"""A project that adds flashoptim gets the library as it was tested, whatever
that project asks of its own code.

Flags reach the library's files in many ways. Here every way carries every flag that would change results,
take exceptions away or leave the kernels unoptimised, and the compiler is asked what it would do: the same as
in a project that asks for nothing. If these fail, somebody's program gives other results than were tested,
does not build, or is thirty times slower, silently.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONSUMER = Path(__file__).resolve().parent / "consumer"
COMPILER = os.environ.get("CXX", "c++")
KERNELS = ["src/step/backend_scalar.cpp", "src/step/backend_portable.cpp"]
OTHERS = [
    "src/core/quantize.cpp",
    "src/step/step.cpp",
    "src/core/layout.cpp",
    "src/system/message.cpp",
    "src/bindings/capi/c_api.cpp",
]
IS_GCC = (
    "__clang__"
    not in subprocess.run(
        [COMPILER, "-dM", "-E", "-x", "c++", os.devnull], capture_output=True, text=True, check=True
    ).stdout
)

INEXACT = """-Ofast -ffast-math -funsafe-math-optimizations -fassociative-math -freciprocal-math
    -ffinite-math-only -fno-signed-zeros -ffp-contract=fast -frounding-math -fmath-errno"""
OTHERWISE = "-O0 -fno-exceptions -fno-rtti -fno-threadsafe-statics "
OTHERWISE += "-fvisibility=hidden -fvisibility-inlines-hidden -flto"
FLAGS = [
    *INEXACT.split(),
    *(["-fsingle-precision-constant"] if IS_GCC else []),
    *OTHERWISE.split(),
    "-Werror",
    "-Wuseless-cast",
]
if not IS_GCC:
    FLAGS.remove("-Wuseless-cast")
# With these the language is another one, too.
WORST = [*FLAGS, "-std=c++17"]

WAYS: dict[str, tuple[list[str], dict[str, str]]] = {
    "add_compile_options": ([f"-DCONSUMER_COMPILE_OPTIONS=$<$<COMPILE_LANGUAGE:CXX>:{';'.join(WORST)}>"], {}),
    "link_libraries": ([f"-DCONSUMER_LINKED_OPTIONS=$<$<COMPILE_LANGUAGE:CXX>:{';'.join(WORST)}>"], {}),
    "CMAKE_CXX_FLAGS": ([f"-DCMAKE_CXX_FLAGS={' '.join(FLAGS)}", "-DCMAKE_CXX_STANDARD=17"], {}),
    "CMAKE_CXX_FLAGS_MINSIZEREL": (
        [f"-DCMAKE_CXX_FLAGS_MINSIZEREL=-Os {' '.join(FLAGS)}", "-DCMAKE_BUILD_TYPE=MinSizeRel"],
        {},
    ),
    "CXXFLAGS": (["-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_CXX_STANDARD=23"], {"CXXFLAGS": " ".join(FLAGS)}),
    "variables": (
        [
            "-DCMAKE_INTERPROCEDURAL_OPTIMIZATION=ON",
            "-DCMAKE_UNITY_BUILD=ON",
            "-DCMAKE_CXX_VISIBILITY_PRESET=hidden",
            "-DCMAKE_VISIBILITY_INLINES_HIDDEN=ON",
            "-DCMAKE_COMPILE_WARNING_AS_ERROR=ON",
            "-DCMAKE_CXX_STANDARD=17",
            "-DCMAKE_CXX_EXTENSIONS=ON",
            "-DBUILD_SHARED_LIBS=ON",
        ],
        {},
    ),
}


def configure(build: Path, *options: str, env: dict[str, str] | None = None) -> dict[str, list[str]]:
    """Adds flashoptim to the consumer; the command of each of the library's files by its path."""
    without = [
        f"-DCMAKE_DISABLE_FIND_PACKAGE_{name}=ON" for name in ("GTest", "benchmark", "CLI11", "fmt", "Torch")
    ]
    command: list[str | Path] = [
        "cmake",
        "-S",
        CONSUMER,
        "-B",
        build,
        "-G",
        "Ninja",
        f"-DFLASHOPTIM_SOURCE={ROOT}",
        *without,
        *options,
    ]
    command.append("-DCMAKE_EXPORT_COMPILE_COMMANDS=ON")
    environment = {key: value for key, value in os.environ.items() if key != "CXXFLAGS"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**environment, **(env or {})}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = {}
    for entry in json.loads((build / "compile_commands.json").read_text()):
        file = Path(entry["file"])
        if file.is_relative_to(ROOT / "src"):
            arguments = shlex.split(entry["command"])
            found[str(file.relative_to(ROOT))] = arguments[: arguments.index("-o")]
    return found


MACROS = r"__FAST_MATH__|__FINITE_MATH_ONLY__|__RECIPROCAL_MATH__|__ASSOCIATIVE_MATH__|__NO_SIGNED_ZEROS__"
MACROS += r"|__NO_MATH_ERRNO__|__ROUNDING_MATH__|__EXCEPTIONS|__cpp_exceptions|__GXX_RTTI|__cpp_rtti"
MACROS += r"|__cpp_threadsafe_static_init|__cplusplus|__STRICT_ANSI__"
SETTINGS = r"-f(fp-contract=|associative-math|finite-math-only|reciprocal-math|signed-zeros"
SETTINGS += r"|unsafe-math-optimizations|math-errno|rounding-math|trapping-math|exceptions|rtti"
SETTINGS += r"|single-precision-constant|threadsafe-statics|lto|visibility=|visibility-inlines-hidden"
SETTINGS += r"|cx-limited-range|excess-precision=)"


def meaning(command: list[str]) -> set[str]:
    """What the compiler makes of a command: macros of everything that matters, and
    GCC's own list of settings."""
    flags = [argument for argument in command if not argument.endswith("/ccache")]
    macros = subprocess.run(
        [*flags, "-dM", "-E", "-x", "c++", os.devnull], capture_output=True, text=True, check=True
    ).stdout
    said = set(re.findall(rf"#define (?:{MACROS}) .*", macros))
    assert any("__cplusplus" in line for line in said)
    if IS_GCC:
        listed = ""
        for kind in ("common", "c++"):
            ask = ["-x", "c++", "-c", os.devnull, "-o", os.devnull, "-Q", f"--help={kind}"]
            listed += subprocess.run([*flags, *ask], capture_output=True, text=True, check=True).stdout
        settings = {
            " ".join(line.split()) for line in listed.splitlines() if re.match(rf" +{SETTINGS}", line)
        }
        assert len(settings) > 10, listed
        said |= settings
    return said


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """What a project gets that asks for nothing, not even a build type."""
    commands = configure(tmp_path_factory.mktemp("plain"))
    return {file: meaning(commands[file]) for file in (*KERNELS, *OTHERS)}


@pytest.mark.parametrize("way", WAYS)
def test_flags_of_the_surrounding_project_change_nothing(
    plain: dict[str, set[str]], tmp_path: Path, way: str
):
    options, environment = WAYS[way]
    commands = configure(tmp_path, *options, env=environment)
    for file, expected in plain.items():
        assert file in commands, "joined with other files"
        assert meaning(commands[file]) == expected, (way, file)
        assert "-Wno-error" in commands[file], (
            "warnings of a compiler yet to come stop the surrounding project"
        )


@pytest.mark.parametrize("kind", ["", "Debug", "MinSizeRel", "RelWithDebInfo", "Release"])
def test_kernels_are_optimised_in_every_configuration(tmp_path: Path, kind: str):
    commands = configure(tmp_path, *([f"-DCMAKE_BUILD_TYPE={kind}"] if kind else []))
    kernels = [file for file in commands if "/step/backend_" in file] + ["src/core/quantize.cpp"]
    assert len(kernels) >= 3
    for file in kernels:
        optimisation = [argument for argument in commands[file] if argument.startswith("-O")]
        assert optimisation[-1] == "-O3", (kind, file)
