"""What is compiled for one instruction set stays with it, and the processor is asked for all of it.

The linker keeps one copy of a function that several files define. If that copy was compiled for another
instruction set, a program dies of an illegal instruction on the processors that lack it, and which copy wins
depends on the linker. Optimised builds inline such functions away, so the kernels are compiled here without
optimisation.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STEP = ROOT / "src" / "step"
COMMANDS = ROOT / "build" / "release" / "compile_commands.json"
NAMES = [path.stem.removeprefix("backend_") for path in sorted(STEP.glob("backend_*.cpp"))]


def compile_command(name: str) -> list[str]:
    """How the build compiles a backend, without its output and its optimisation."""
    entries = json.loads(COMMANDS.read_text())
    [command] = [entry["command"] for entry in entries if entry["file"].endswith(f"step/backend_{name}.cpp")]
    arguments = shlex.split(command)
    output = arguments.index("-o")
    arguments[output : output + 2] = []
    arguments.remove("-c")
    return [a for a in arguments if not re.fullmatch(r"-O.*|-g.*|-DNDEBUG|.*/ccache|.*\.cpp", a)]


def run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built() -> list[str]:
    """The backends that the build has on this processor."""
    if not COMMANDS.exists():
        pytest.skip("build/release is not configured")
    return [name for name in NAMES if f"backend_{name}.cpp" in COMMANDS.read_text()]


def test_no_two_instruction_sets_share_a_symbol(built: list[str], tmp_path: Path):
    def symbols(name: str) -> set[str]:
        source, target = str(STEP / f"backend_{name}.cpp"), str(tmp_path / f"{name}.o")
        run([*compile_command(name), "-O0", "-g0", "-c", source, "-o", target])
        lines = run(["nm", "--defined-only", "--extern-only", "--format=posix", target]).splitlines()
        return {line.split()[0] for line in lines}

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        of = dict(zip(built, threads.map(symbols, built), strict=True))
    seen: dict[str, str] = {}
    for name, found in of.items():
        space = f"isa_{name}"
        plain = {symbol.lstrip("_") for symbol in found}
        # The one door, and the compiler's reference to the runtime's exception handler, which is data.
        door = {s for s in plain if s.startswith("ZN10flashoptim") and s.endswith(f"{name}_backendEv")}
        assert len(door) == 1, name
        others = plain - door - {"DW.ref.__gxx_personality_v0"}
        assert not [s for s in others if f"{len(space)}{space}" not in s][:5], name
        for symbol in others:
            assert symbol not in seen, f"{symbol} is in {name} and in {seen[symbol]}"
            seen[symbol] = name
        assert len(others) > 50, "the kernels were optimised or inlined away: this test sees nothing"


@pytest.mark.skipif(platform.machine() not in {"x86_64", "AMD64"}, reason="not an x86 processor")
def test_every_bit_that_the_compiler_may_use_is_asked_for(built: list[str]):
    table = re.findall(r'^ +\{"(\w+)", X86Level::k(\w+),', (STEP / "processor.h").read_text(), re.MULTILINE)
    assert len(table) > 20

    def macros(name: str) -> set[str]:
        said = run([*compile_command(name), "-x", "c++", "-dM", "-E", os.devnull])
        return set(re.findall(r"^#define (__\w+) ", said, re.MULTILINE))

    baseline = macros("portable")
    reached: set[str] = set()
    for name, level in (("avx2", "V3"), ("avx512", "V4"), ("avx512_vbmi", "V4WithVbmi")):
        reached |= {macro for macro, of_level in table if of_level == level}
        more = macros(name) - baseline
        # Not instructions: sizes, the level's name, how code is tuned, and what follows from the rest.
        instructions = {
            macro
            for macro in more
            if re.fullmatch(r"__[A-Z][A-Z0-9]+(_[A-Z0-9]+)*__", macro) or "COMPARE_AND_SWAP" in macro
        }
        assert {"avx2": "__AVX2__", "avx512": "__AVX512F__"}.get(name, "__AVX512VBMI__") in instructions
        unasked = {macro for macro in instructions - reached if not macro.startswith(("__EVEX", "__AVX10"))}
        assert not unasked, (
            f"{name}: the compiler may use {sorted(unasked)}, which src/step/processor.h does not ask for"
        )
