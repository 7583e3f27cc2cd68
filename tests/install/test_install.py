"""The installed package as a stranger uses it: by find_package, add_subdirectory, FetchContent, pkg-config
and by hand, from C++ and from C, static and shared, from a folder that was moved after installation. If these
fail, nobody outside this repository can build against the library.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONSUMER = Path(__file__).resolve().parent / "consumer"
CONSUMER_C = Path(__file__).resolve().parent / "consumer_c"
WORK = ROOT / "build" / "install-test"  # builds lie beside build/release: ccache tells relative paths apart
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
    build = ROOT / "build" / f"install-{kind}"
    options = [
        f"-DBUILD_SHARED_LIBS={'ON' if kind == 'shared' else 'OFF'}",
        "-DFLASHOPTIM_CUDA_ARCHITECTURES=80",
    ]
    # With the flags of our own builds ccache has compiled all of it before.
    options += ["-DFLASHOPTIM_TORCH=OFF", "-DFLASHOPTIM_BUILD_CHECKPOINT=ON", "-DFLASHOPTIM_WERROR=ON"]
    run("cmake", "-S", ROOT, "-B", build, "-G", "Ninja", *options)
    run("cmake", "--build", build)
    return install(build, WORK / kind)


@pytest.fixture
def build() -> Iterator[Path]:
    """An empty folder for a consumer's build."""
    folder = ROOT / "build" / "install-consumer"
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
    assert "7 parameters" in run(build / "consumer_checkpoint", build / "saved")


def test_find_package_serves_a_project_without_cxx(prefix: Path, build: Path):
    run("cmake", "-S", CONSUMER_C, "-B", build, "-G", "Ninja", f"-DCMAKE_PREFIX_PATH={prefix}")
    run("cmake", "--build", build)
    assert "7 parameters" in run(build / "consumer_c")


def test_the_lines_of_the_readme_build_a_project(prefix: Path, build: Path, tmp_path: Path):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    [lines] = re.findall(r"```cmake\n(.*?)```", readme, re.DOTALL)
    for word in ("cmake -S . -B build/install", "flashoptim::c`", "flashoptim::cuda`", "flashoptim::torch`"):
        assert word in readme
    shutil.copy(CONSUMER / "main_checkpoint.cpp", tmp_path / "main.cpp")
    project = "cmake_minimum_required(VERSION 3.22)\nproject(p LANGUAGES CXX)\n"
    project += f"add_executable(program main.cpp)\n{lines}"
    (tmp_path / "CMakeLists.txt").write_text(project)
    run("cmake", "-S", tmp_path, "-B", build, "-G", "Ninja", f"-DCMAKE_PREFIX_PATH={prefix}")
    run("cmake", "--build", build)
    assert "7 parameters" in run(build / "program", build / "saved")


def test_one_line_builds_the_consumer(prefix: Path, build: Path):
    """As the README has it, for those without a build system."""
    build.mkdir(parents=True)
    folder = libraries(prefix)
    cxx = os.environ.get("CXX", "c++")
    line: list[str | Path] = [
        "-std=c++20",
        CONSUMER / "main.cpp",
        "-o",
        build / "cpp",
        f"-I{prefix / 'include'}",
        f"-L{folder}",
    ]
    run(cxx, *line, "-lflashoptim", "-pthread", f"-Wl,-rpath,{folder}")
    assert "7 parameters" in run(build / "cpp")


def test_pkg_config_builds_and_runs_the_consumers(prefix: Path, build: Path):
    build.mkdir(parents=True)
    at_run_time = {"LD_LIBRARY_PATH": str(libraries(prefix)), "DYLD_LIBRARY_PATH": str(libraries(prefix))}
    cxx, cc = os.environ.get("CXX", "c++"), os.environ.get("CC", "cc")
    run(cxx, "-std=c++20", CONSUMER / "main.cpp", "-o", build / "cpp", *pkg_config(prefix, "flashoptim"))
    run(cc, "-std=c11", CONSUMER / "main.c", "-o", build / "c", *pkg_config(prefix, "flashoptim-c"))
    for program in ("cpp", "c"):
        assert "7 parameters" in run(build / program, env=at_run_time)


# With ccache and the flags of our own builds, nothing is compiled that another build here compiled before.
AS_WE_BUILD = ["-DFLASHOPTIM_TORCH=OFF", "-DCMAKE_BUILD_TYPE=Release", "-DFLASHOPTIM_WERROR=ON"]
if shutil.which("ccache"):
    AS_WE_BUILD += ["-DCMAKE_C_COMPILER_LAUNCHER=ccache", "-DCMAKE_CXX_COMPILER_LAUNCHER=ccache"]


def test_add_subdirectory_builds_and_runs_the_consumer(build: Path):
    configure(build, f"-DFLASHOPTIM_SOURCE={ROOT}", *AS_WE_BUILD, f"-DFLASHOPTIM_COMPONENTS={COMPONENTS}")
    run("cmake", "--build", build)
    for program in ("consumer", "consumer_c"):
        assert "7 parameters" in run(build / program)
    assert "7 parameters" in run(build / "consumer_checkpoint", build / "saved")
    assert not list(build.rglob("*_test")), "a project that adds flashoptim does not want its tests"


def test_add_subdirectory_serves_a_project_without_cxx(build: Path):
    run("cmake", "-S", CONSUMER_C, "-B", build, "-G", "Ninja", f"-DFLASHOPTIM_SOURCE={ROOT}", *AS_WE_BUILD)
    run("cmake", "--build", build)
    assert "7 parameters" in run(build / "consumer_c")


def test_fetch_content_adds_the_library(build: Path, tmp_path: Path):
    """What add_subdirectory builds, from an archive; nothing that the consumer does not link is built."""
    archive = tmp_path / "flashoptim.tar"
    files = run("git", "-C", ROOT, "ls-files", "--cached", "--others", "--exclude-standard").splitlines()
    with tarfile.open(archive, "w") as tar:
        for name in files:
            if (ROOT / name).is_file():
                tar.add(ROOT / name, f"flashoptim-0.1/{name}")
    configure(build, f"-DFLASHOPTIM_FETCH={archive}", *AS_WE_BUILD)
    plan = run("cmake", "--build", build, "--", "-n", "consumer")
    assert "backend_scalar.cpp" in plan
    assert "libflashoptim_c" not in run("cmake", "--build", build, "--", "-n", "all")


def test_every_dependency_but_the_compiler_may_be_missing(build: Path):
    """Tests, benchmarks and the command need more; who only wants the library installs none of it."""
    names = (
        "GTest",
        "benchmark",
        "CLI11",
        "fmt",
        "nlohmann_json",
        "Torch",
        "CUDAToolkit",
        "Python",
        "OpenMP",
    )
    without = [f"-DCMAKE_DISABLE_FIND_PACKAGE_{name}=ON" for name in names]
    without += ["-DFLASHOPTIM_TORCH=OFF"]  # .venv has it
    configure(build, f"-DFLASHOPTIM_SOURCE={ROOT}", *without)
    shutil.rmtree(build)
    said = run("cmake", "-S", ROOT, "-B", build, "-G", "Ninja", "-DFLASHOPTIM_CUDA=OFF", *without)
    assert "without checkpoints and the C interface: nlohmann-json" in said
    said = run("cmake", "-S", ROOT, "-B", build, "-DFLASHOPTIM_BUILD_CHECKPOINT=ON", *without, fails=True)
    assert "nlohmann-json3-dev" in said


@pytest.mark.skipif(sys.platform != "linux", reason="looks into ELF files with nm")
def test_libraries_export_only_what_is_ours(prefix: Path):
    """A program may have another version of what they contain, compiled with other switches."""
    special = "vtable|VTT|typeinfo|typeinfo name|guard variable"
    # nvcc makes a function for every kernel that bears the kernel's name.
    ours = re.compile(rf"({special}) for flashoptim::|flashoptim(::|_\w+$)|__device_stub__\w*flashoptim")
    found = sorted(libraries(prefix).glob("libflashoptim*.a")) + sorted(
        libraries(prefix).glob("libflashoptim*.so")
    )
    assert len(found) >= 3
    for library in found:
        shared = library.suffix == ".so"
        table = run("nm", "--demangle", "--defined-only", "--dynamic" if shared else "--extern-only", library)
        for line in table.splitlines():
            match = re.match(r"[0-9a-f]+ ([A-Za-z]) (.*)", line)
            if match is None:
                continue
            kind, name = match.groups()
            name = re.sub(r"^(non-virtual thunk to|virtual thunk to) ", "", name)
            # Templates of the standard library are in every C++ library; shared ones keep them to themselves.
            is_template = kind in "WVu" and not shared
            assert ours.match(name) or is_template or name == "DW.ref.__gxx_personality_v0", (library, line)
            assert not re.search(r"(?<![\w])(nlohmann|fmt)::", name), (library, line)
        if not shared:
            members = run("ar", "t", library).split()
            assert len(members) == len(set(members)), (
                f"{library} has two members of one name: {sorted(members)}"
            )


def test_compilers_that_are_too_old_are_named(tmp_path: Path):
    real = shutil.which(os.environ.get("CXX", "c++"))
    for what, flags, said in (
        ("old", "-U__GNUC__ -D__GNUC__=10 -U__clang_major__ -D__clang_major__=9", "which is too old"),
        ("bare", "-nostdinc++", "lacks what flashoptim needs of C++20"),
    ):
        compiler = tmp_path / what
        compiler.write_text(f'#!/bin/sh\nexec {real} {flags} "$@"\n')
        compiler.chmod(0o755)
        options = [f"-DCMAKE_CXX_COMPILER={compiler}", "-DCMAKE_CXX_COMPILER_LAUNCHER="]
        output = run(
            "cmake", "-S", ROOT, "-B", tmp_path / f"build-{what}", "-G", "Ninja", *options, fails=True
        )
        assert said in " ".join(output.split())
        assert "GCC 11" in output


def test_trainer_and_command_include_no_private_header():
    """They are programs like a user's own: what they need of the library is installed."""
    own = {"trainer": [ROOT], "apps": [ROOT, ROOT / "apps" / "flashoptim"]}
    for folder, places in own.items():
        for source in (path for path in (ROOT / folder).rglob("*") if path.suffix in {".h", ".cpp"}):
            for name in re.findall(r'^#include "(.+)"', source.read_text(encoding="utf-8"), re.MULTILINE):
                assert not name.startswith(("src/", "..")), f"{source}: {name}"
                found = [place for place in [ROOT / "include", *places] if (place / name).is_file()]
                assert found, f"{source} includes {name}, which is neither installed nor its own"


def test_older_language_gives_one_error_with_its_remedy(tmp_path: Path):
    for header in sorted((ROOT / "include" / "flashoptim").rglob("*.h")):
        if header.name in {"c_api.h", "version.h"}:  # these are C's too
            continue
        source = tmp_path / "old.cpp"
        source.write_text(f"#include <{header.relative_to(ROOT / 'include')}>\n")
        for standard in ("c++17", "c++11"):
            compiler = os.environ.get("CXX", "c++")
            said = run(
                compiler, f"-std={standard}", "-fsyntax-only", "-I", ROOT / "include", source, fails=True
            )
            assert said.count("error:") == 1, said
            assert "flashoptim needs C++20: compile with -std=c++20" in said


def test_inexact_flags_do_not_get_past_cmake():
    """Flags may also come from a toolchain or an environment; users' own code may
    have them, the library may not."""
    compiler = os.environ.get("CXX", "c++")
    check = [compiler, "-std=c++20", "-fsyntax-only", "-I", ROOT / "include", "-I", ROOT / "src"]
    assert "exact results" in run(*check, "-ffast-math", ROOT / "src" / "core" / "quantize.cpp", fails=True)
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
    if not list(RELEASE.glob("src/bindings/torch/libflashoptim_torch.*")):
        pytest.skip("build/release has no LibTorch optimizers")
    prefix = install(RELEASE, WORK / "torch")
    torch = next((ROOT / ".venv").glob("lib/python3*/site-packages/torch"))
    configure(build, f"-DCMAKE_PREFIX_PATH={prefix};{torch}", "-DFLASHOPTIM_COMPONENTS=torch")
    run("cmake", "--build", build)
    assert "7 parameters" in run(build / "consumer_torch")
    assert "compare" in run(prefix / "bin" / "flashoptim", "--help")
