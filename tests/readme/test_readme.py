"""The README's examples, compiled and run exactly as printed.

What a user loses if these fail: the first ten minutes.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "release" / "src"
CORE = BUILD / "libflashoptim.a"
TORCH = BUILD / "torch" / "libflashoptim_torch.a"
CUDA = BUILD / "cuda" / "libflashoptim_cuda.a"
CMAKE_CACHE = ROOT / "build" / "release" / "CMakeCache.txt"
PYTHON = ROOT / "build" / "release" / "python"
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```cpp\n(.*?)```", README, re.DOTALL)


def example_that_includes(header: str) -> str:
    found = [example for example in EXAMPLES if f"<{header}>" in example]
    assert len(found) == 1, f"the README has {len(found)} examples that include {header}"
    return found[0]


def compile_and_run(source: str, folder: Path, *flags: str) -> None:
    (folder / "example.cpp").write_text(source, encoding="utf-8")
    compiler = shutil.which("c++") or "g++"
    source_and_program = [str(folder / "example.cpp"), "-o", str(folder / "example")]
    command = [compiler, "-std=c++20", f"-I{ROOT / 'include'}", *source_and_program, *flags]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    subprocess.run([folder / "example"], check=True, timeout=300)


def cuda_flags() -> list[str]:
    """What a build with the CUDA backend links in addition."""
    cache = CMAKE_CACHE.read_text(encoding="utf-8")
    runtime = re.findall(r"^CUDA_cudart_static_LIBRARY:FILEPATH=(.*cudart_static\.a)$", cache, re.MULTILINE)
    return [str(CUDA), *runtime, "-ldl", "-lrt"] if CUDA.exists() else []


@pytest.mark.skipif(not CORE.exists(), reason=f"{CORE} is not built")
def test_core_example(tmp_path: Path) -> None:
    compile_and_run(example_that_includes("flashoptim/flashoptim.h"), tmp_path, str(CORE), "-lpthread")


@pytest.mark.skipif(not TORCH.exists(), reason=f"{TORCH} is not built")
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_libtorch_example(tmp_path: Path) -> None:
    import torch
    from torch.utils import cpp_extension

    libraries = Path(torch.__file__).parent / "lib"
    flags = [f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}"]
    flags += [flag for folder in cpp_extension.include_paths() for flag in ("-isystem", folder)]
    flags += [
        str(TORCH),
        *cuda_flags(),
        str(CORE),
        f"-L{libraries}",
        f"-Wl,-rpath,{libraries}",
        "-ltorch",
        "-ltorch_cpu",
        "-lc10",
        "-lpthread",
    ]
    compile_and_run(example_that_includes("flashoptim/libtorch.h"), tmp_path, *flags)


@pytest.mark.skipif(not (PYTHON / "flashoptim_cpp").exists(), reason=f"{PYTHON} is not built")
def test_python_quickstart(tmp_path: Path) -> None:
    [example] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (tmp_path / "example.py").write_text(example, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(PYTHON)}
    command = [sys.executable, "example.py"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("5.1")
    assert (tmp_path / "checkpoint.pt").stat().st_size > 0
