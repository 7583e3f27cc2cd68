"""The NEON lanes under an emulator: the same bits as the scalar reference on another processor.

Where Debian's cross compiler and qemu-user are (g++-aarch64-linux-gnu, qemu-user), the core is compiled for
64-bit ARM by the project's own CMake and run. If this fails, a checkpoint of an x86 machine goes on
differently on ARM.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMPILER = shutil.which("aarch64-linux-gnu-g++")
EMULATOR = shutil.which("qemu-aarch64")
BUILD = ROOT / "build" / "neon"


@pytest.mark.skipif(
    COMPILER is None or EMULATOR is None, reason="no aarch64-linux-gnu-g++ or no qemu-aarch64"
)
def test_neon_gives_the_bits_of_the_scalar_reference():
    toolchain = [
        "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        f"-DCMAKE_CXX_COMPILER={COMPILER}",
    ]
    core_only = [
        f"-DFLASHOPTIM_{part}=OFF" for part in ("TORCH", "CUDA", "BUILD_TESTS", "BUILD_BENCH", "INSTALL")
    ]
    # Unoptimised vectors would take the emulator minutes.
    kind = ["-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_CXX_FLAGS_RELEASE=-O1"]
    subprocess.run(
        [
            "cmake",
            "-G",
            "Ninja",
            "-S",
            ROOT,
            "-B",
            BUILD,
            "--log-level=WARNING",
            *toolchain,
            *core_only,
            *kind,
        ],
        check=True,
    )
    subprocess.run(["cmake", "--build", BUILD, "--target", "flashoptim"], check=True)
    program = BUILD / "same_bits_program"
    source = ROOT / "tests" / "neon" / "same_bits_program.cpp"
    library = BUILD / "src" / "libflashoptim.a"
    subprocess.run(
        [str(COMPILER), "-std=c++20", "-O1", "-static", f"-I{ROOT}/include", source, library, "-o", program],
        check=True,
    )
    result = subprocess.run([str(EMULATOR), program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.startswith("neon against scalar"), result.stdout
