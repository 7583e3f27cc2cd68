"""The installed package as a stranger uses it: by find_package, add_subdirectory and pkg-config, static and shared, from
a folder that was moved after installation. If these fail, nobody outside this repository can build against the library.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONSUMER = Path(__file__).resolve().parent / "consumer"
WORK = ROOT / "build" / "install-test"
RELEASE = ROOT / "build" / "release"
COMPONENTS = "core;checkpoint;c"


def run(*command: str | Path, env: dict[str, str] | None = None, fails: bool = False) -> str:
    """Runs a program and returns all that it printed; it has to succeed, or with fails to fail."""
    done = subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **(env or {})},
        check=False,
    )
    assert (done.returncode != 0) == fails, f"{command[0]} exited with {done.returncode}:\n{done.stdout}"
    return done.stdout


def install(build: Path, prefix: Path) -> Path:
    """Installs a build tree, then moves what was installed: nothing in it may know where it was made."""
    first = prefix.with_name(prefix.name + "-before-move")
    for folder in (first, prefix):
        shutil.rmtree(folder, ignore_errors=True)
    run("cmake", "--install", build, "--prefix", first)
    first.rename(prefix)
    return prefix


@pytest.fixture(scope="module", params=["static", "shared"])
def prefix(request: pytest.FixtureRequest) -> Path:
    """A moved installation of everything that needs no Torch."""
    kind: str = request.param
    build = WORK / f"build-{kind}"
    options = [
        f"-DBUILD_SHARED_LIBS={'ON' if kind == 'shared' else 'OFF'}",
        "-DFLASHOPTIM_CUDA_ARCHITECTURES=80",
    ]
    options += [f"-DFLASHOPTIM_{what}=OFF" for what in ("TORCH", "BUILD_TESTS", "BUILD_BENCH", "BUILD_APPS")]
    run("cmake", "-S", ROOT, "-B", build, "-G", "Ninja", *options)
    run("cmake", "--build", build)
    return install(build, WORK / kind)


@pytest.fixture
def build() -> Iterator[Path]:
    """An empty folder for a consumer's build."""
    folder = WORK / "consumer"
    shutil.rmtree(folder, ignore_errors=True)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def configure(build: Path, *options: str, fails: bool = False) -> str:
    """Configures the consumer project."""
    return run("cmake", "-S", CONSUMER, "-B", build, "-G", "Ninja", *options, fails=fails)


def libraries(prefix: Path) -> Path:
    """The folder of the installed libraries, whatever this system calls it."""
    return next(prefix.glob("lib*/**/pkgconfig")).parent


def pkg_config(prefix: Path, *names: str) -> list[str]:
    """The flags that pkg-config gives for the installed package."""
    if shutil.which("pkg-config") is None:
        pytest.skip("pkg-config is not here")
    return run(
        "pkg-config",
        "--cflags",
        "--libs",
        *names,
        env={"PKG_CONFIG_PATH": str(libraries(prefix) / "pkgconfig")},
    ).split()


def test_find_package_builds_and_runs_the_consumers(prefix: Path, build: Path):
    # Shared libraries have the CUDA runtime in them, if any: no toolkit is needed beside them.
    toolkit = ["-DCMAKE_DISABLE_FIND_PACKAGE_CUDAToolkit=ON"] if prefix.name == "shared" else []
    configure(build, f"-DCMAKE_PREFIX_PATH={prefix}", f"-DFLASHOPTIM_COMPONENTS={COMPONENTS}", *toolkit)
    run("cmake", "--build", build)
    for program in ("consumer", "consumer_c"):
        assert "7 parameters" in run(build / program)


def test_pkg_config_builds_and_runs_the_consumers(prefix: Path, build: Path):
    build.mkdir(parents=True)
    at_run_time = {"LD_LIBRARY_PATH": str(libraries(prefix)), "DYLD_LIBRARY_PATH": str(libraries(prefix))}
    cxx, cc = os.environ.get("CXX", "c++"), os.environ.get("CC", "cc")
    run(cxx, "-std=c++20", CONSUMER / "main.cpp", "-o", build / "cpp", *pkg_config(prefix, "flashoptim"))
    run(cc, "-std=c11", CONSUMER / "main.c", "-o", build / "c", *pkg_config(prefix, "flashoptim-c"))
    for program in ("cpp", "c"):
        assert "7 parameters" in run(build / program, env=at_run_time)


def test_add_subdirectory_builds_and_runs_the_consumer(build: Path):
    options = [f"-DFLASHOPTIM_SOURCE={ROOT}", "-DFLASHOPTIM_TORCH=OFF", "-DCMAKE_BUILD_TYPE=Release"]
    # With ccache and the flags of our own builds, nothing is compiled that another build here compiled before.
    options += ["-DFLASHOPTIM_WERROR=ON"]
    if shutil.which("ccache"):
        options += ["-DCMAKE_C_COMPILER_LAUNCHER=ccache", "-DCMAKE_CXX_COMPILER_LAUNCHER=ccache"]
    configure(build, *options, f"-DFLASHOPTIM_COMPONENTS={COMPONENTS}")
    run("cmake", "--build", build)
    for program in ("consumer", "consumer_c"):
        assert "7 parameters" in run(build / program)
    assert not list(build.rglob("*_test")), "a project that adds flashoptim does not want its tests"


def test_inexact_flags_of_the_surrounding_project_are_refused(build: Path):
    """With them every result would silently be another one."""
    options = [f"-DFLASHOPTIM_SOURCE={ROOT}", "-DFLASHOPTIM_TORCH=OFF"]
    for flag in ("-ffast-math", "-Ofast", "-ffinite-math-only"):
        shutil.rmtree(build, ignore_errors=True)
        assert f"inexact arithmetic ({flag})" in configure(
            build, *options, f"-DCONSUMER_COMPILE_OPTIONS={flag}", fails=True
        )


def test_inexact_flags_do_not_get_past_cmake():
    """Flags may also come from a toolchain or an environment; users' own code may have them, the library may not."""
    compiler = os.environ.get("CXX", "c++")
    check = [compiler, "-std=c++20", "-fsyntax-only", "-I", ROOT / "include", "-I", ROOT / "src"]
    assert "exact results" in run(*check, "-ffast-math", ROOT / "src" / "quantize.cpp", fails=True)
    run(*check, "-ffast-math", CONSUMER / "main.cpp")


def test_missing_component_and_wrong_version_are_named(prefix: Path, build: Path):
    assert "component torch is not in this installation" in configure(
        build, f"-DCMAKE_PREFIX_PATH={prefix}", "-DFLASHOPTIM_COMPONENTS=torch", fails=True
    )
    assert "0.1." in configure(
        build, f"-DCMAKE_PREFIX_PATH={prefix}", "-DFLASHOPTIM_WANTED_VERSION=0.2", fails=True
    )


def test_installed_files_name_no_path_of_the_build(prefix: Path):
    for file in (path for path in prefix.rglob("*") if path.suffix in {".cmake", ".pc", ".h"}):
        assert str(ROOT) not in file.read_text(), file


def test_every_installed_header_stands_alone(prefix: Path):
    include = prefix / "include"
    for header in sorted(include.rglob("*.h")):
        name = header.relative_to(include)
        languages = [("c++", "c++20")] + ([("c", "c11")] if header.name in {"c_api.h", "version.h"} else [])
        for language, standard in languages:
            compiler = os.environ.get("CXX", "c++") if language == "c++" else os.environ.get("CC", "cc")
            run(
                compiler,
                f"-std={standard}",
                "-fsyntax-only",
                "-x",
                language,
                "-include",
                name,
                "-I",
                include,
                os.devnull,
            )


def test_torch_component_and_command_run_where_they_are_installed(build: Path):
    if not list(RELEASE.glob("src/torch/libflashoptim_torch.*")):
        pytest.skip("build/release has no LibTorch optimizers")
    prefix = install(RELEASE, WORK / "torch")
    torch = next((ROOT / ".venv").glob("lib/python3*/site-packages/torch"))
    configure(build, f"-DCMAKE_PREFIX_PATH={prefix};{torch}", "-DFLASHOPTIM_COMPONENTS=torch")
    run("cmake", "--build", build)
    assert "7 parameters" in run(build / "consumer_torch")
    assert "compare" in run(prefix / "bin" / "flashoptim", "--help")
