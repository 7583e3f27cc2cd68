"""What a configuration makes of the machine that it meets: compilers that do not
work, versions and habits of Torch.

If these fail, somebody whose machine differs from ours gets no build, or one with
other switches than were tested.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LEFT_OUT = [
    f"-DFLASHOPTIM_{what}=OFF"
    for what in ("BUILD_TESTS", "BUILD_BENCH", "BUILD_APPS", "BUILD_CHECKPOINT", "BUILD_PYTHON", "INSTALL")
]
# As the package file of a CUDA torch does in the scope of who finds it.
TORCH_CONFIG = """
set(TORCH_INSTALL_PREFIX "${CMAKE_CURRENT_LIST_DIR}/../../..")
if(DEFINED CMAKE_CUDA_ARCHITECTURES)
    message(WARNING "pytorch is not compatible with CMAKE_CUDA_ARCHITECTURES")
    set(CMAKE_CUDA_ARCHITECTURES OFF)
endif()
set(CMAKE_CUDA_STANDARD 17)
string(APPEND CMAKE_CUDA_FLAGS " -gencode arch=compute_50,code=sm_50 --expt-relaxed-constexpr")
add_library(torch INTERFACE)
"""


def configure(build: Path, *options: str, env: dict[str, str] | None = None) -> tuple[bool, str]:
    """Configures the project; whether it succeeded, and what was said, on one line."""
    done = subprocess.run(
        ["cmake", "-S", ROOT, "-B", build, "-G", "Ninja", *LEFT_OUT, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **(env or {})},
        check=False,
    )
    return done.returncode == 0, " ".join(done.stdout.split())


def torch_of(folder: Path, version: str) -> str:
    """A Torch of that version, to be found by CMake; the option that names it."""
    package = folder / "torch" / "share" / "cmake" / "Torch"
    package.mkdir(parents=True)
    (package / "TorchConfig.cmake").write_text(TORCH_CONFIG)
    (package / "TorchConfigVersion.cmake").write_text(
        f'set(PACKAGE_VERSION "{version}")\nset(PACKAGE_VERSION_COMPATIBLE TRUE)\n'
    )
    return f"-DTorch_DIR={package}"


def test_torch_does_not_change_how_kernels_are_compiled(tmp_path: Path):
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not here")
    options = ["-DFLASHOPTIM_TORCH=ON", "-DFLASHOPTIM_CUDA=ON", "-DFLASHOPTIM_CUDA_ARCHITECTURES=90"]
    options += ["-DFLASHOPTIM_BUILD_CHECKPOINT=ON"]
    done, said = configure(tmp_path / "build", torch_of(tmp_path, "2.13.0"), *options)
    assert done, said
    assert "pytorch is not compatible" not in said
    commands = json.loads((tmp_path / "build" / "compile_commands.json").read_text())
    kernels = [entry["command"] for entry in commands if entry["file"].endswith(".cu")]
    assert kernels
    for command in kernels:
        assert "compute_90" in command and "c++20" in command
        assert "compute_50" not in command and "expt-relaxed" not in command


def test_torch_without_checkpoints_is_refused_by_name(tmp_path: Path):
    torch = torch_of(tmp_path, "2.13.0")
    options = ["-DFLASHOPTIM_CUDA=OFF", "-DFLASHOPTIM_BUILD_CHECKPOINT=OFF", torch]
    done, said = configure(tmp_path / "on", "-DFLASHOPTIM_TORCH=ON", *options)
    assert not done
    assert "choose FLASHOPTIM_BUILD_CHECKPOINT=ON; or configure with -DFLASHOPTIM_TORCH=OFF" in said
    done, said = configure(tmp_path / "auto", "-DFLASHOPTIM_TORCH=AUTO", *options)
    assert done, said


def test_a_torch_that_is_too_old_is_named(tmp_path: Path):
    torch = torch_of(tmp_path, "2.10.1")
    options = ["-DFLASHOPTIM_CUDA=OFF", torch]
    done, said = configure(tmp_path / "on", "-DFLASHOPTIM_TORCH=ON", *options)
    assert not done
    assert "is version '2.10.1' and 2.11 or later is needed" in said
    done, said = configure(tmp_path / "auto", "-DFLASHOPTIM_TORCH=AUTO", *options)
    assert done, said
    assert "flashoptim without LibTorch" in said


def test_nvcc_that_does_not_work_leaves_a_build_without_cuda(tmp_path: Path):
    nvcc = tmp_path / "cuda" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text("#!/bin/sh\necho '#error -- unsupported GNU version!' >&2\nexit 1\n")
    nvcc.chmod(0o755)
    env = {"CUDA_HOME": str(tmp_path / "cuda")}
    done, said = configure(tmp_path / "auto", "-DFLASHOPTIM_TORCH=OFF", "-DFLASHOPTIM_CUDA=AUTO", env=env)
    assert done, said
    assert "flashoptim without CUDA" in said and "unsupported GNU version" in said and str(nvcc) in said
    done, said = configure(tmp_path / "on", "-DFLASHOPTIM_TORCH=OFF", "-DFLASHOPTIM_CUDA=ON", env=env)
    assert not done
    assert "FLASHOPTIM_CUDA is ON, but" in said and "unsupported GNU version" in said


@pytest.mark.parametrize(
    ("shown", "chosen"), [("9.0\n9.0\n12.0\n", "90;120"), ("8.6\n", "86"), ("7.5\n", "80"), ("", "80")]
)
def test_native_kernels_are_for_the_gpus_that_are_there(tmp_path: Path, shown: str, chosen: str):
    """Otherwise the driver compiles all kernels at their first use, or refuses them
    if nvcc is newer than it is."""
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not here")
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\nprintf '{shown}'\n")
    tool.chmod(0o755)
    options = ["-DFLASHOPTIM_TORCH=OFF", "-DFLASHOPTIM_CUDA=ON", "-DFLASHOPTIM_CUDA_ARCHITECTURES=native"]
    done, said = configure(
        tmp_path / "build", *options, env={"PATH": f"{tool.parent}{os.pathsep}{os.environ['PATH']}"}
    )
    assert done, said
    assert f"compute capabilities {chosen} " in said
