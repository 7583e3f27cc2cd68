"""The wheel that `python -m build` makes, as a stranger gets it: its tag, its content, what
its library asks of the machine.

What a user loses if these fail: an installation, or one that needs a compiler, a GPU's
driver or one version of Python.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from flashoptim_cpp import _operators as operators

ROOT = Path(__file__).resolve().parents[2]
RELEASE = ROOT / "build" / "release" / "CMakeCache.txt"
VERSION = re.findall(r'VERSION_STRING "(.*)"', (ROOT / "include/flashoptim/version.h").read_text())[0]
LIBRARY = "flashoptim_cpp/libflashoptim_operators.so"
BUILT = ROOT / "build" / "release" / "python"
WITH_CUDA = operators.GPU_KERNELS == 1 and (BUILT / LIBRARY).exists()


def run(*command: str | Path, env: dict[str, str] | None = None, cwd: Path = ROOT) -> str:
    """Runs a program, which has to succeed, and returns all that it printed."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command[0]} exited with {done.returncode}:\n{done.stdout}"
    return done.stdout


def build(*options: str) -> None:
    """Builds with the compiler of the preset `release`, by its name there: the compiler cache
    then knows the core already."""
    compilers = (
        re.findall(r"^CMAKE_(C|CXX)_COMPILER:\w+=(.*)$", RELEASE.read_text(), re.M)
        if RELEASE.exists()
        else []
    )
    env = {**os.environ, **{"CC" if kind == "C" else kind: path for kind, path in compilers}}
    run(sys.executable, "-m", "build", "--no-isolation", *options, ".", env=env)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its build folder is kept, so that a second run compiles what has changed."""
    out = tmp_path_factory.mktemp("wheel")
    build(
        "--wheel",
        "-Cbuild-dir=build/wheel",
        "-Ccmake.define.FLASHOPTIM_WERROR=ON",
        "-Ccmake.define.FLASHOPTIM_CUDA=OFF",  # minutes of compiling
        f"--outdir={out}",
    )
    (made,) = out.iterdir()
    return made


@pytest.fixture(scope="module")
def unpacked(wheel: Path) -> Path:
    folder = wheel.parent / "unpacked"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_one_wheel_serves_every_python_of_a_platform(wheel: Path, unpacked: Path) -> None:
    assert re.fullmatch(rf"flashoptim_cpp-{re.escape(VERSION)}-py3-none-(linux|macosx)_\w+\.whl", wheel.name)
    info = unpacked / f"flashoptim_cpp-{VERSION}.dist-info"
    assert "Root-Is-Purelib: false\nTag: py3-none-" in (info / "WHEEL").read_text()
    metadata = (info / "METADATA").read_text()
    for line in (
        "Name: flashoptim-cpp",
        f"Version: {VERSION}",
        "License-Expression: Apache-2.0",
        "Requires-Python: >=3.10",
        "Requires-Dist: torch>=2.10",
    ):
        assert f"\n{line}\n" in metadata


def test_the_wheel_holds_the_package_and_nothing_else(unpacked: Path) -> None:
    sources = ROOT / "python" / "flashoptim_cpp"
    expected = {f"flashoptim_cpp/{p.relative_to(sources)}" for p in sources.rglob("*.py")}
    expected |= {"flashoptim_cpp/py.typed", LIBRARY}
    found = {str(p.relative_to(unpacked)) for p in unpacked.rglob("*") if p.is_file()}
    info = f"flashoptim_cpp-{VERSION}.dist-info"
    assert found == expected | {f"{info}/{n}" for n in ("METADATA", "WHEEL", "RECORD", "licenses/LICENSE")}


@pytest.mark.skipif(shutil.which("readelf") is None, reason="readelf is not installed")
def test_the_library_needs_torch_and_the_c_library_only(unpacked: Path) -> None:
    check_needs(unpacked / LIBRARY, is_installed=True)


@pytest.mark.skipif(shutil.which("readelf") is None, reason="readelf is not installed")
@pytest.mark.skipif(not WITH_CUDA, reason="the build has no CUDA kernels")
def test_with_cuda_kernels_it_needs_no_more() -> None:
    check_needs(BUILT / LIBRARY, is_installed=False)
    assert BUILT.joinpath(LIBRARY).stat().st_size < 64 << 20


def check_needs(library: Path, is_installed: bool) -> None:
    """Whether a machine without a GPU's driver, and any torch, can load it. Built in place
    it also knows torch's folder."""
    dynamic = run("readelf", "--wide", "--dynamic", library)
    needed = {name.split(".so")[0] for name in re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic)}
    system = {
        "libstdc++",
        "libm",
        "libgcc_s",
        "libc",
        "libdl",
        "libpthread",
        "librt",
        "ld-linux-x86-64",
        "ld-linux-aarch64",
    }
    assert {"libtorch", "libtorch_cpu"} <= needed <= system | {"libtorch", "libtorch_cpu"}
    assert not is_installed or ("RPATH" not in dynamic and "RUNPATH" not in dynamic)
    symbols = run("readelf", "--wide", "--dyn-syms", library)
    undefined = re.findall(r" UND (\S+)", symbols)
    # Torch's stable interface is C; a C++ symbol of torch or one of Python would
    # bind the library to one version.
    assert not [
        name for name in undefined if re.match(r"_ZNK?(3c10|2at|5torch)|_?Py[A-Z_]|cuda|cu[A-Z]", name)
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="auditwheel reads Linux wheels")
def test_auditwheel_finds_a_manylinux_wheel(wheel: Path) -> None:
    said = " ".join(run(sys.executable, "-m", "auditwheel", "show", wheel).split())
    assert 'constrains the platform tag to "manylinux_' in said


def test_it_steps_in_a_fresh_process_without_a_compiler(unpacked: Path, tmp_path: Path) -> None:
    nothing = tmp_path / "bin"
    nothing.mkdir()
    program = """
import shutil, torch, flashoptim_cpp
assert shutil.which("cc") is shutil.which("c++") is shutil.which("gcc") is None
weight = torch.nn.Parameter(torch.ones(64, 64, dtype=torch.bfloat16))
optimizer = flashoptim_cpp.FlashAdamW([weight], lr=1e-1)
weight.grad = torch.ones_like(weight)
optimizer.step()
print(flashoptim_cpp.__file__, float(weight.mean()))
"""
    env = {"PATH": str(nothing), "PYTHONPATH": str(unpacked), "HOME": str(tmp_path)}
    where, mean = run(sys.executable, "-c", program, env=env, cwd=tmp_path).split()[-2:]
    assert Path(where) == unpacked / "flashoptim_cpp" / "__init__.py"
    # AdamW moves each weight by lr in its first step, and bfloat16 has three digits.
    assert float(mean) == pytest.approx(0.9, abs=0.01)


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a checkout")
def test_the_source_distribution_is_complete(tmp_path: Path) -> None:
    build("--sdist", f"--outdir={tmp_path}")
    (made,) = tmp_path.iterdir()
    with tarfile.open(made) as archive:
        found = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    tracked = {name for name in run("git", "ls-files").splitlines() if (ROOT / name).is_file()}
    assert {name for name in tracked if not name.startswith(".ci/")} <= found
    assert not [name for name in found if name.startswith((".git/", ".venv/", "build/", "out/"))]
