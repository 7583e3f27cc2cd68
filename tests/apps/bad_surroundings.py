"""Bad inputs: the environment, closed descriptors, limits of the process and a full disk."""

from __future__ import annotations

from bad_input import Case, bench, compare, finished, train

CLOSED = {"0": "<&-", "1": ">&-", "0-and-1": "<&- >&-"}


def started(*how: str) -> str:
    return " ".join((*how[:-1], 'exec "$@"', how[-1]))


def environments() -> list[Case]:
    backends = {
        "unknown": "sse9",
        "capitals": "AVX2",
        "word": "yes please",
        "newline": "a\nb",
        "escape": "\x1b[31m",
    }
    return [
        make_case(
            f"backend-{kind}",
            names=("FLASHOPTIM_BACKEND",),
            shell=f"FLASHOPTIM_BACKEND='{value}' exec \"$@\"",
        )
        for kind, value in backends.items()
        for make_case in (train, compare, bench)
    ]


def closed() -> list[Case]:
    """The descriptors are not taken by a file of the run, and the refusal is seen where it can be."""
    refused = ("--data=nope.txt", "--out=out")
    cases = [
        make_case(f"closed-{name}", *refused, names=("nope.txt",), shell=f'exec "$@" {how}')
        for name, how in CLOSED.items()
        for make_case in (train, compare)
    ]
    for name, how in {"2": "2>&-", "all": "<&- >&- 2>&-"}.items():
        cases += [
            train(f"closed-{name}", *refused, names=(), shell=f'exec "$@" {how}', silent=True),
            compare(f"closed-{name}", *refused, names=(), shell=f'exec "$@" {how}', silent=True),
            train(
                f"closed-{name}-over-a-run",
                "--out=out",
                names=(),
                make=(finished("run"),),
                shell=f'exec "$@" {how}',
                silent=True,
            ),
        ]
    return [
        *cases,
        bench("closed-2", "--threads=0", names=(), shell='exec "$@" 2>&-', silent=True),
        bench("closed-1", "--threads=0", names=("--threads",), shell='exec "$@" >&-'),
        train("standard-input-that-cannot-be-read", "--data=-", names=("-",), shell='exec "$@" </'),
    ]


def places() -> list[Case]:
    """Without a current folder nothing can be found, and MKL ends the process before main."""
    removed = 'mkdir gone && cd gone && rmdir ../gone && exec "$@"'
    cases = [
        make_case("current-folder-removed", names=("current folder",), shell=removed)
        for make_case in (train, compare, bench)
    ]
    return [
        *cases,
        Case("help-current-folder-removed", ("--help",), ("cd",), shell=removed),
        Case("help-of-train-current-folder-removed", ("train", "--help"), ("cd",), shell=removed),
    ]


def limits() -> list[Case]:
    few_files = [
        make_case(
            f"limit-of-{most}-open-files",
            "--out=out",
            names=("open files", "ulimit -n"),
            shell=f'ulimit -n {most}; exec "$@"',
        )
        for make_case in (train, compare)
        for most in (8, 12)  # enough to start with, too few for a checkpoint
    ]
    return [
        *few_files,
        train(
            "limit-of-file-size",
            "--out=out",
            names=("out",),
            codes=(1, 2),
            shell='ulimit -f 64; exec "$@"',  # 32 KiB: no checkpoint, but all lines
            leaves=("out",),
        ),
        train(
            "limit-of-file-size-for-json",
            "--json=x.json",
            names=("x.json",),
            codes=(1, 2),
            shell='ulimit -f 1; exec "$@"',
        ),
        compare(
            "limit-of-file-size",
            names=("out",),
            codes=(1, 2),
            shell='ulimit -f 64; exec "$@"',  # 32 KiB: no checkpoint, but all lines
            leaves=("out",),
        ),
        train(
            "limit-of-address-space",
            "--batch=4096",
            "--sequence=1000",
            "--validation-fraction=0.4",
            names=("memory",),
            shell='ulimit -v 6000000; exec "$@"',
            limits_memory=True,
        ),
    ]


CASES = [*environments(), *closed(), *places(), *limits()]
