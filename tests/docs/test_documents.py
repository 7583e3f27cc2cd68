"""The examples of the README and of docs/optimizers, compiled and run exactly as printed; the tables of
docs/optimizers.

What a user loses if these fail: the first ten minutes, and figures of memory and defaults that are true.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "release"
PYTHON = BUILD / "python"
README = ROOT / "README.md"
PAGES = sorted(page for page in (ROOT / "docs" / "optimizers").glob("*.md") if page.name != "README.md")
HEADINGS = ["Formula", "State", "Bytes per parameter", "Hyperparameters", "Examples"]

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
needs_package = pytest.mark.skipif(not (PYTHON / "flashoptim_cpp").exists(), reason=f"{PYTHON} is not built")


def library(name: str) -> str:
    """A library of the release build; without it the test is skipped."""
    found = sorted((BUILD / "src").rglob(f"lib{name}.a"), key=lambda file: file.stat().st_mtime)
    if not found:
        pytest.skip(f"{name} is not built in {BUILD}")
    return str(found[-1])


def examples(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def example_that_includes(header: str) -> str:
    found = [example for example in examples(README, "cpp") if f"<{header}>" in example]
    assert len(found) == 1, f"the README has {len(found)} examples that include {header}"
    return found[0]


def table(page: Path, heading: str) -> list[dict[str, str]]:
    """The rows of the table below a heading, by the names of their columns."""
    section = page.read_text(encoding="utf-8").split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = [
        [cell.strip().replace("`", "") for cell in line.strip("|").split("|")]
        for line in section.splitlines()
        if line.startswith("|")
    ]
    return [dict(zip(rows[0], row, strict=True)) for row in rows[2:]]


def run(*command: str | Path, folder: Path, **environment: str) -> str:
    """What a program prints; the test fails where it does not exit with 0."""
    settings = {**os.environ, **environment}
    done = subprocess.run(
        command, cwd=folder, env=settings, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def compile_and_run(source: str, language: str, folder: Path, *libraries: str, flags: list[str]) -> str:
    """Compiles an example in C or C++ and returns what it prints."""
    (folder / f"example.{language}").write_text(source, encoding="utf-8")
    cxx = shutil.which("c++") or "g++"
    compiler = [cxx, "-std=c++20"] if language == "cpp" else [shutil.which("cc") or "gcc", "-std=c99"]
    warnings = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"]
    files = ["-c", f"example.{language}", "-o", "example.o"]
    run(*compiler, *warnings, f"-I{ROOT / 'include'}", *flags, *files, folder=folder)
    run(cxx, "example.o", "-o", "example", *libraries, *cuda_libraries(), "-lpthread", folder=folder)
    return run(folder / "example", folder=folder)


def cuda_libraries() -> list[str]:
    """What a build with the CUDA backend links in addition."""
    cuda = list((BUILD / "src").rglob("libflashoptim_cuda.a"))
    if not cuda:
        return []
    cache = (BUILD / "CMakeCache.txt").read_text(encoding="utf-8")
    runtime = re.findall(r"^CUDA_cudart_static_LIBRARY:FILEPATH=(.*cudart_static\.a)$", cache, re.MULTILINE)
    return [str(cuda[0]), library("flashoptim"), *runtime, "-ldl", "-lrt"]


def run_python(source: str, folder: Path) -> str:
    (folder / "example.py").write_text(source, encoding="utf-8")
    return run(sys.executable, "example.py", folder=folder, PYTHONPATH=str(PYTHON))


def run_example(page: Path, language: str, folder: Path) -> str:
    """The output of a page's only example in a language."""
    [source] = examples(page, language)
    if language == "python":
        return run_python(source, folder)
    names = ["flashoptim"] if language == "cpp" else ["flashoptim_c", "flashoptim_checkpoint", "flashoptim"]
    return compile_and_run(source, language, folder, *map(library, names), flags=[])


def test_core_example(tmp_path: Path) -> None:
    source = example_that_includes("flashoptim/flashoptim.h")
    compile_and_run(source, "cpp", tmp_path, library("flashoptim"), flags=["-Wno-unused-variable"])


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_libtorch_example(tmp_path: Path) -> None:
    import torch
    from torch.utils import cpp_extension

    folder = Path(torch.__file__).parent / "lib"
    flags = [f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}"]
    flags += [flag for include in cpp_extension.include_paths() for flag in ("-isystem", include)]
    libraries = [library("flashoptim_torch"), *cuda_libraries(), library("flashoptim")]
    libraries += [f"-L{folder}", f"-Wl,-rpath,{folder}", "-ltorch", "-ltorch_cpu", "-lc10"]
    source = example_that_includes("flashoptim/libtorch.h")
    compile_and_run(source, "cpp", tmp_path, *libraries, flags=flags)


@needs_package
def test_python_quickstart(tmp_path: Path) -> None:
    [example] = examples(README, "python")
    assert run_python(example, tmp_path).startswith("5.1")
    assert (tmp_path / "checkpoint.pt").stat().st_size > 0


def test_example_of_two_passes(tmp_path: Path) -> None:
    page = ROOT / "docs" / "two_passes.md"
    assert run_example(page, "cpp", tmp_path).strip() in examples(page, "cpp")[0].splitlines()[-2]


@each_page
def test_page_has_every_section(page: Path) -> None:
    assert re.findall(r"^## (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE) == HEADINGS


@each_page
@pytest.mark.parametrize("language", ["cpp", "c", pytest.param("python", marks=needs_package)])
def test_page_example(page: Path, language: str, tmp_path: Path) -> None:
    """Each prints the bytes per parameter that the comment of its last print says."""
    [source] = examples(page, language)
    [said] = re.findall(r"print.*(?://|/\*|#) ([\d.]+)", source)
    assert float(run_example(page, language, tmp_path)) == float(said)


def classes(page: Path) -> list[str]:
    """The Python classes of a page: that of its example, and its form with decoupled decay on the same
    page."""
    [name] = re.findall(r"flash\.(Flash\w+)\(", examples(page, "python")[0])
    return [name, f"{name}W"] if page.stem == "sgd" else [name]


@each_page
@needs_package
@pytest.mark.filterwarnings("ignore:master_weight_bits=None")
def test_table_of_bytes(page: Path) -> None:
    import torch

    flash = pytest.importorskip("flashoptim_cpp")
    for row in table(page, "Bytes per parameter"):
        label, *_ = row.values()
        for bits in ("24", "32", "16", "none"):
            if not row[bits]:
                continue
            dtype = torch.float32 if "fp32 weights" in label else torch.bfloat16
            weight = torch.nn.Parameter(torch.zeros(1024, 1024, dtype=dtype))
            options: dict[str, object] = {"format": label.split(",")[0]}
            options |= {"momentum": 0.9} if page.stem == "sgd" else {}
            options |= {"format": "native", "momentum": 0.0} if label == "no momentum" else {}
            options |= {"master_weight_bits": None if bits == "none" else int(bits)}
            optimizer = getattr(flash, classes(page)[0])([weight], **options)
            weight.grad = torch.zeros_like(weight)
            optimizer.step()
            weight.grad = None
            assert optimizer.memory_report()["bytes_per_parameter"] == float(row[bits]), (label, bits)


@each_page
@needs_package
def test_defaults_of_python(page: Path) -> None:
    flash = pytest.importorskip("flashoptim_cpp")
    signatures = [inspect.signature(getattr(flash, name)).parameters for name in classes(page)]
    for row in table(page, "Hyperparameters"):
        name, said = row["LibTorch, Python"], ast.literal_eval(row["default in Python"].split(", as")[0])
        found = [signature[name].default for signature in signatures if name in signature]
        assert found and set(found) == {said}, name


DEFAULTS_IN_C = r"""
#include <flashoptim/c_api.h>
#include <stdio.h>
int main(void) {
    flashoptim_hyperparameters h;
    for (int32_t rule = 0; !flashoptim_hyperparameters_init(&h, sizeof h, rule); ++rule) {
        printf("learning_rate=%g beta1=%g beta2=%g ", h.learning_rate, h.beta1, h.beta2);
        printf("epsilon=%g ", h.epsilon);
        printf("weight_decay=%g momentum=%g dampening=%g ", h.weight_decay, h.momentum, h.dampening);
        printf("nesterov=%d maximize=%d fully_decoupled=%d ", h.nesterov, h.maximize, h.fully_decoupled);
        printf("beta3=%g alpha=%g alpha_warmup=%g ", h.beta3, h.alpha, h.alpha_warmup);
        printf("beta3_warmup=%g no_prox=%d\n", h.beta3_warmup, h.no_prox);
    }
    return 0;
}
"""


def test_defaults_of_c_and_cpp(tmp_path: Path) -> None:
    names = ["flashoptim_c", "flashoptim_checkpoint", "flashoptim"]
    printed = compile_and_run(DEFAULTS_IN_C, "c", tmp_path, *map(library, names), flags=[])
    defaults = [dict(pair.split("=") for pair in line.split()) for line in printed.splitlines()]
    header = (ROOT / "include" / "flashoptim" / "c_api.h").read_text(encoding="utf-8")
    for page in PAGES:
        rule = re.findall(r"flashoptim_create\((\w+)", examples(page, "c")[0])[0]
        [number] = re.findall(rf"{rule} = (\d+)", header)
        for row in table(page, "Hyperparameters"):
            values = row["default"].replace("false", "0").split(", ")
            for name, value in zip(row["C++, C"].split(", "), values, strict=True):
                assert float(defaults[int(number)][name]) == float(value), f"{page.name}: {name}"
