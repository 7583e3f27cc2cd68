"""One bad input of the command: what is typed, what lies in the folder around it, and what a
refusal of it must look like."""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from command import TINY

Argument = str | bytes
NOBODY = 65534
# A remedy follows a semicolon or a colon and has one of these words.
REMEDY = re.compile(
    r"[;:?] .*(\b(allow|ask|bring|change|check|choose|close|convert|copy|decompress|delete|fetch|free|give|"
    r"install|keep|leave|let|lower|make|move|must|name|put|raise|read|remove|rename|reduce|repeat|replace|"
    r"restore|resume|run|send|set|shorten|split|"
    r"start|stop|switch|take|train|try|unpack|unset|use|wait|write)\b|--help)"
)


# What the command says of itself before it refuses: that a damaged checkpoint was passed
# over, that options have changed.
NOTE = re.compile(r"[a-z0-9 ]+: note: .*\n")


class CannotBeMade(Exception):
    """This machine or user has not what the case needs; the reason is the text."""


@dataclass(frozen=True)
class World:
    """Where a case lives: its own folder, and the finished runs that it may take copies of."""

    folder: Path
    finished: Path


Maker = Callable[[World], None]


@dataclass(frozen=True)
class Case:
    """A bad input. `names` must all stand in the message, each as one of its parts between bars."""

    name: str
    arguments: tuple[Argument, ...]
    names: tuple[str, ...]
    make: tuple[Maker, ...] = ()
    codes: tuple[int, ...] = (2,)
    as_nobody: bool = False  # root may read and write what others may not
    shell: str = ""  # how the command "$@" is started; empty: plainly
    leaves: tuple[str, ...] = ()  # names in the folder that the command may add or change
    silent: bool = False  # its standard error is closed
    limits_memory: bool = False  # which a sanitizer needs without end


@dataclass(frozen=True)
class Result:
    """How the command ended. `code` is None where it had to be killed."""

    code: int | None
    output: bytes
    errors: bytes
    changes: tuple[tuple[str, str], ...]
    cannot: str = ""


def train(name: str, *arguments: Argument, names: tuple[str, ...], **more: object) -> Case:
    """A run of one step on good data, with these arguments behind: of an option
    given twice the last counts."""
    typed = ("train", "--data", "text.txt", *map(str, TINY), "--steps", "1", *arguments)
    return Case(f"train-{name}", typed, names, **more)  # type: ignore[arg-type]


def compare(name: str, *arguments: Argument, names: tuple[str, ...], **more: object) -> Case:
    """A comparison of one run of one step."""
    own = ("--formats", "native", "--no-plot", "--out", "out", "--steps", "1")
    typed = ("compare", "--data", "text.txt", *map(str, TINY), *own, *arguments)
    return Case(f"compare-{name}", typed, names, **more)  # type: ignore[arg-type]


def bench(name: str, *arguments: Argument, names: tuple[str, ...], **more: object) -> Case:
    """One measurement of the smallest size."""
    own = (
        "--optimizer",
        "adamw",
        "--format",
        "native",
        "--threads",
        "1",
        "--parameters",
        "1",
        "--rounds",
        "1",
    )
    # A list takes all that it is given: what the case gives itself is not given before.
    given = {a.split("=")[0] for a in arguments if isinstance(a, str)}
    kept = [part for at in range(0, len(own), 2) if own[at] not in given for part in own[at : at + 2]]
    return Case(f"bench-{name}", ("bench", *kept, *arguments), names, **more)  # type: ignore[arg-type]


# --- what lies in the folder


def file(name: Argument, content: bytes = b"", mode: int = 0o644) -> Maker:
    def make(world: World) -> None:
        path = world.folder / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(mode)

    return make


def folder(name: str, mode: int = 0o755) -> Maker:
    def make(world: World) -> None:
        (world.folder / name).mkdir(parents=True, exist_ok=True)
        (world.folder / name).chmod(mode)

    return make


def mode(name: str, bits: int) -> Maker:
    return lambda world: (world.folder / name).chmod(bits)


def link(name: str, target: str) -> Maker:
    def make(world: World) -> None:
        (world.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (world.folder / name).symlink_to(target)

    return make


def fifo(name: str) -> Maker:
    def make(world: World) -> None:
        (world.folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(world.folder / name)

    return make


def node(name: str, kind: int, bits: int = 0) -> Maker:
    """A socket (kind S_IFSOCK) or a device of its own, so that the machine's cannot be
    harmed; `bits` is its number."""

    def make(world: World) -> None:
        try:
            os.mknod(world.folder / name, kind | 0o666, bits)
            if kind != stat.S_IFSOCK:
                (world.folder / name).open("rb", buffering=0).close()
        except OSError as error:
            raise CannotBeMade(f"a device cannot be made here: {error}") from error

    return make


def socket(name: str) -> Maker:
    return node(name, stat.S_IFSOCK)


def null(name: str) -> Maker:
    return node(name, stat.S_IFCHR, os.makedev(1, 3))


def finished(name: str, to: str = "out") -> Maker:
    """A copy of a finished run ("run"), a comparison ("comparison") or a
    checkpoint's folder below one of them."""

    def make(world: World) -> None:
        (world.folder / to).parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(world.finished / name, world.folder / to, symlinks=True)

    return make


def live(name: str = "out") -> Maker:
    """A link to the folder of a run that goes on."""
    return lambda world: (world.folder / name).symlink_to(world.finished / "live")


def removed(name: str) -> Maker:
    def make(world: World) -> None:
        path = world.folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()

    return make


def changed(name: str, change: Callable[[bytes], bytes]) -> Maker:
    def make(world: World) -> None:
        path = world.folder / name
        path.write_bytes(change(path.read_bytes()))

    return make


# --- what must be


def shown(errors: bytes) -> str:
    return errors.decode("utf-8", "backslashreplace")


Snapshot = dict[str, tuple[object, ...]]


def snapshot(place: Path) -> Snapshot:
    """Everything below a folder by name: kind, mode, owner, and of files time and content."""
    found: Snapshot = {}
    for path in walk(place):
        status = path.lstat()
        entry: tuple[object, ...] = (stat.filemode(status.st_mode), status.st_rdev, status.st_uid)
        if stat.S_ISLNK(status.st_mode):
            entry += (path.readlink(),)
        elif stat.S_ISREG(status.st_mode):
            entry += (status.st_mtime_ns, content(path))
        found[str(path.relative_to(place))] = entry
    return found


def walk(place: Path) -> Iterator[Path]:
    """The folder and all that is in it, also behind links to folders."""
    for at, folders, files in os.walk(place, followlinks=True):
        yield Path(at)
        yield from (Path(at, name) for name in files)
        yield from (path for path in (Path(at, name) for name in folders) if path.is_symlink())


def content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except PermissionError:
        return None


def changes(before: Snapshot, after: Snapshot) -> tuple[tuple[str, str], ...]:
    """What became of each name that is not as it was."""
    how = {(True, True): "changed", (True, False): "removed", (False, True): "added"}
    names = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    return tuple((name, how[name in before, name in after]) for name in names)


def complaints(case: Case, result: Result) -> list[str]:
    """What is wrong with how the command met a bad input; nothing where all is as it must be."""
    found = []
    if result.code is None:
        found.append("it had to be killed: it hangs, or trains")
    elif result.code not in case.codes:
        found.append(f"exit code {result.code} instead of {' or '.join(map(str, case.codes))}")
    text = shown(result.errors)
    lines = re.findall(r"[^\n]*\n|[^\n]+", text)
    # What ends a run that has begun stands behind the lines of its progress.
    errors = [line for line in lines if not NOTE.match(line)] if case.codes == (2,) else lines[-1:]
    if case.silent:
        if text:
            found.append("something was written where nothing can be read")
    elif len(errors) != 1 or not errors[0].startswith("flashoptim: ") or not errors[0].endswith("\n"):
        found.append("not exactly one line 'flashoptim: ...' on standard error")
    else:
        found += [
            f"{name!r} is not named" for name in case.names if not any(p in text for p in name.split("|"))
        ]
        if not REMEDY.search(errors[0]):
            found.append("no remedy behind a semicolon or a colon")
    try:
        unprintable = [c for c in result.errors.decode("utf-8") if is_control(c) and c != "\n"]
    except UnicodeDecodeError:
        unprintable = ["bytes that are no UTF-8"]
    if unprintable:
        found.append(f"raw {unprintable} on standard error")
    if case.codes == (2,) and result.output:
        found.append("a refused command wrote to standard output")
    for name, how in result.changes:
        if not any(name == left or name.startswith(f"{left}/") for left in case.leaves):
            found.append(f"{name!r} was {how}")
    return found


def is_control(character: str) -> bool:
    return ord(character) < 0x20 or 0x7F <= ord(character) < 0xA0
