"""The linters: which files each of them sees, and how. Nothing is built or tested here.

`lint.py` checks and exits with 1 where something is wrong; `lint.py --fix` rewrites what can be rewritten.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import docs

ROOT = Path(__file__).resolve().parent.parent
BIN = ROOT / ".venv" / "bin"
CPP_FOLDERS = ("include", "src", "trainer", "apps", "tests", "bench", "examples")
PYTHON_FOLDERS = ("apps", "bench", "docs", "examples", "python", "scripts", "tests")
CPP_SUFFIXES = {".h", ".cpp", ".c", ".cu", ".cuh"}
# LibTorch's headers take clang-tidy minutes, so it reads the core only.
TIDY_FOLDERS = ("include", "src")
TIDY_EXCEPT = (ROOT / "src" / "bindings" / "torch",)
COMPILE_COMMANDS = ROOT / "build" / "release" / "compile_commands.json"


def files(folders: Iterable[str], suffixes: set[str]) -> list[Path]:
    """Files with one of the suffixes below the named folders of the repository, sorted."""
    found = (path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in suffixes)
    return sorted(path for path in found if path.is_file())


def run(*command: str | Path) -> bool:
    """Runs a program in the repository root; true where it exits with 0."""
    return subprocess.run([str(part) for part in command], cwd=ROOT, check=False).returncode == 0


def clang_format(fix: bool = False) -> bool:
    """C++ layout."""
    sources = files(CPP_FOLDERS, CPP_SUFFIXES)
    return not sources or run(BIN / "clang-format", *(["-i"] if fix else ["--dry-run", "-Werror"]), *sources)


def ruff(fix: bool = False) -> bool:
    """Python layout and mistakes."""
    checked = run(BIN / "ruff", "check", "-q", *(["--fix"] if fix else []), ".")
    return run(BIN / "ruff", "format", "-q", *([] if fix else ["--check"]), ".") and checked


def mypy(fix: bool = False) -> bool:
    """Python types. Each call reads torch again, so it takes as many folders as have no file name twice. The
    package goes alone: to all others it is an installed one."""
    sources = files(PYTHON_FOLDERS, {".py"})
    package = [path for path in sources if path.is_relative_to(ROOT / "python")]
    calls: list[list[Path]] = []
    for parent in sorted({path.parent for path in sources if path not in package}):
        folder = sorted(parent.glob("*.py"))
        names = {path.name for path in folder}
        for call in calls:
            if names.isdisjoint(path.name for path in call):
                call += folder
                break
        else:
            calls.append(folder)
    return all([run(BIN / "mypy", "--no-error-summary", *call) for call in [package, *calls]])


def compile_commands() -> list[dict[str, str]]:
    """How the build compiles each file. A file that several targets compile is taken once for each set of our
    macros that it uses."""
    commands: dict[tuple[str, ...], dict[str, str]] = {}
    for entry in json.loads(COMPILE_COMMANDS.read_text()):
        text = Path(entry["file"]).read_text() if Path(entry["file"]).exists() else ""
        ours = {word for word in entry["command"].split() if word.startswith("-DFLASHOPTIM_")}
        used = sorted(word for word in ours if word[2:].partition("=")[0] in text)
        commands.setdefault((entry["file"], *used), entry)
    return list(commands.values())


def clang_tidy(fix: bool = False) -> bool:
    """Mistakes in the core. A file is read again only when it, a header or the settings changed."""
    if not COMPILE_COMMANDS.exists():
        print(f"clang-tidy needs {COMPILE_COMMANDS.relative_to(ROOT)}: run `cmake --preset release` first")
        return False
    commands = compile_commands()
    compiled = {Path(entry["file"]) for entry in commands}
    core = [
        path
        for path in files(TIDY_FOLDERS, CPP_SUFFIXES)
        if not any(path.is_relative_to(p) for p in TIDY_EXCEPT)
        # What this machine does not compile (the lanes of other processors) clang-tidy cannot read either.
        and (path.suffix != ".cpp" or path in compiled)
    ]
    shared = hashlib.sha256(
        (ROOT / ".clang-tidy").read_bytes() + (ROOT / "requirements-dev.txt").read_bytes()
    )
    for header in (path for path in core if path.suffix == ".h"):
        shared.update(header.read_bytes())
    stamps = ROOT / "build" / "release" / "clang-tidy"
    stamps.mkdir(parents=True, exist_ok=True)
    (stamps / COMPILE_COMMANDS.name).write_text(json.dumps(commands))

    def check(source: Path) -> bool:
        key = shared.copy()
        key.update(str(source.relative_to(ROOT)).encode() + source.read_bytes())
        stamp = stamps / key.hexdigest()
        if not stamp.exists():
            # The flags are those of the compiler, which may know warnings and optimisations that clang does
            # not.
            command = [BIN / "clang-tidy", "--quiet", "--extra-arg=-Wno-unknown-warning-option"]
            command += ["--extra-arg=-Wno-ignored-optimization-argument"]
            command += ["-p", stamps, source]
            done = subprocess.run([str(part) for part in command], cwd=ROOT, capture_output=True, text=True)
            if done.returncode != 0:
                print(done.stdout + done.stderr, flush=True)
                return False
            stamp.touch()
        return True

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return all(list(pool.map(check, (path for path in core if path.suffix == ".cpp"))))


def doxygen(fix: bool = False) -> bool:
    """Doc comments of the public headers. Without Doxygen, which `make docs` installs, they are not read."""
    return shutil.which("doxygen") is None or docs.doxygen()


LINTERS: dict[str, Callable[[bool], bool]] = {
    "clang-format": clang_format,
    "ruff": ruff,
    "mypy": mypy,
    "doxygen": doxygen,
    "clang-tidy": clang_tidy,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fix", action="store_true", help="rewrite layout instead of checking")
    fix = parser.parse_args().fix
    chosen = ("clang-format", "ruff") if fix else tuple(LINTERS)
    wrong = [name for name in chosen if not LINTERS[name](fix)]
    if wrong:
        print(f"lint: {', '.join(wrong)} found something; `make format` mends layout", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
