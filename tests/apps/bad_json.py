"""Bad inputs: what --json may name, and what may lie there."""

from __future__ import annotations

import stat

from bad_input import Argument, Case, Maker, bench, compare, fifo, file, finished, folder, link, node, train
from bad_places import NO_PLACE, STEP


def jsons() -> list[Case]:
    places: list[tuple[str, Argument, str, tuple[Maker, ...]]] = [
        *NO_PLACE,
        ("in-a-missing-folder", "no/such/folder/x.json", "no/such/folder", ()),
        ("folder", "d", "d", (folder("d"),)),
        ("folder-with-a-slash", "new/", "new/", ()),
        ("fifo", "pipe", "pipe", (fifo("pipe"),)),
        ("fifo-behind-a-link", "link", "link", (fifo("pipe"), link("link", "pipe"))),
        ("socket", "socket", "socket", (node("socket", stat.S_IFSOCK),)),
        ("link-to-itself", "link", "link", (link("link", "link"),)),
        ("empty", "", "--json", ()),
        ("in-a-folder-that-takes-no-file", "/proc/x.json", "/proc/x.json", ()),
    ]
    cases = [
        make_case(f"json-{name}", "--json", path, names=(called,), make=make)
        for name, path, called, make in places
        for make_case in (train, compare, bench)
    ]
    locked: tuple[Maker, ...] = (folder("d", 0o555),)
    both = (train, compare)
    inputs: list[tuple[str, str, tuple[Maker, ...]]] = [
        ("the-data", "text.txt", ()),
        ("the-data-by-another-name", "./d/../text.txt", (folder("d"),)),
        ("the-data-behind-a-link", "link", (link("link", "text.txt"),)),
    ]
    cases += [
        make_case(f"json-over-{name}", "--json", path, names=(path, "data"), make=make)
        for name, path, make in inputs
        for make_case in both
    ]
    run = (finished("run"),)
    return [
        *cases,
        train(
            "json-over-the-validation-data",
            "--validation-data=v.txt",
            "--json=v.txt",
            names=("v.txt",),
            make=(file("v.txt", b"words " * 400),),
        ),
        train(
            "json-over-a-file-of-the-data",
            "--data=d",
            "--json=d/a.txt",
            names=("d/a.txt",),
            make=(file("d/a.txt", b"words " * 900),),
        ),
        train("json-over-metrics", "--out=out", "--json=out/metrics.csv", names=("metrics.csv",)),
        train("json-over-the-summary", "--out=out", "--json=out/summary.json", names=("summary.json",)),
        train("json-as-checkpoints", "--out=out", "--json=out/checkpoints", names=("checkpoints",)),
        train(
            "json-over-the-lock",
            "--out=out",
            "--json=out/.flashoptim-run.lock",
            names=(".flashoptim-run.lock",),
        ),
        train("json-that-is-out", "--out=out", "--json=out", names=("out",)),
        train(
            "json-over-metrics-of-the-run-resumed",
            "--resume",
            "--steps=2",
            "--out=out",
            "--json=out/metrics.csv",
            names=("metrics.csv",),
            make=run,
        ),
        train(
            "json-over-weights-of-the-run-resumed",
            "--resume",
            "--steps=2",
            "--out=out",
            f"--json={STEP}/weights.safetensors",
            names=("weights.safetensors",),
            make=run,
        ),
        compare("json-over-the-summary", "--json=out/summary.json", names=("summary.json",)),
        compare(
            "json-over-metrics-of-a-run", "--json=out/adamw-native-seed0/metrics.csv", names=("metrics.csv",)
        ),
        train(
            "json-in-a-read-only-folder", "--json=d/x.json", names=("d/x.json",), make=locked, as_nobody=True
        ),
        bench(
            "json-in-a-read-only-folder", "--json=d/x.json", names=("d/x.json",), make=locked, as_nobody=True
        ),
        train(
            "json-in-an-unsearchable-folder",
            "--json=d/x.json",
            names=("d/x.json",),
            make=(folder("d", 0o000),),
            as_nobody=True,
        ),
        bench("json-given-twice", "--json=a.json", "--json=b.json", names=("--json",)),
    ]


CASES = jsons()
