"""Bad inputs: what --out and --resume may name, and what may lie there."""

from __future__ import annotations

import json

from bad_input import (
    Argument,
    Case,
    Maker,
    changed,
    compare,
    fifo,
    file,
    finished,
    folder,
    link,
    live,
    mode,
    null,
    removed,
    train,
)

LONG = "n" * 300
ALMOST_TOO_LONG = "/".join(["n" * 194] * 20)  # the folder can be made, and no checkpoint in it
STEP = "out/checkpoints/step-00000001"
SOMEBODYS = b'{"theirs": true}\n'

# name, path, what it must be called, what lies there: no place for a folder and none for a file
NO_PLACE: list[tuple[str, Argument, str, tuple[Maker, ...]]] = [
    ("below-a-file", "text.txt/run", "text.txt", ()),
    ("behind-a-dangling-link", "link/run", "link", (link("link", "gone"),)),
    ("behind-a-circle", "a/run", "a", (link("a", "b"), link("b", "a"))),
    ("name-too-long", LONG, "nnnnnnnn", ()),
    ("path-too-long", "d/" * 3000 + "run", "d/d/", ()),
    ("where-nothing-can-be-made", "/proc/nothing/run", "/proc/nothing", ()),
    ("newline-below-a-file", "text.txt/a\nb", "text.txt/a\\nb", ()),
    ("escape-below-a-file", "text.txt/\x1b[31m", "text.txt/\\x1b[31m", ()),
    ("no-utf8-below-a-file", b"text.txt/\xe9", "text.txt/\\xe9", ()),
]
NO_FOLDER: list[tuple[str, Argument, str, tuple[Maker, ...]]] = [
    ("file", "text.txt", "text.txt", ()),
    ("fifo", "pipe", "pipe", (fifo("pipe"),)),
    ("device", "null", "null", (null("null"),)),
    ("link-to-itself", "link", "link", (link("link", "link"),)),
    ("link-to-a-file", "link", "link", (link("link", "text.txt"),)),
    ("empty", "", "--out", ()),
]
# What a run needs under its own name, and what somebody else may have there.
OWN_OF_TRAIN = (
    "metrics.csv",
    "summary.json",
    "checkpoints",
    "checkpoints/step-00000001",
    ".flashoptim-run",
    ".flashoptim-run.lock",
)
OWN_OF_COMPARE = (
    "summary.json",
    "adamw-native-seed0",
    "model-bf16.json",
    ".flashoptim-run",
    ".flashoptim-run.lock",
)


def theirs(name: str) -> list[tuple[str, tuple[Maker, ...]]]:
    place = f"out/{name}"
    kinds: list[tuple[str, tuple[Maker, ...]]] = [
        ("their-file", (file(place, SOMEBODYS),)),
        ("their-folder", (file(f"{place}/notes.txt", SOMEBODYS),)),
        ("a-fifo", (fifo(place),)),
        ("their-link", (file("theirs", SOMEBODYS), link(place, "../" * name.count("/") + "../theirs"))),
        ("a-dangling-link", (link(place, "gone"),)),
    ]
    # Checkpoints or a run find room in a folder with other things in it, and a run where a link points.
    harmless = {"checkpoints": ("their-folder",), "adamw-native-seed0": ("their-folder", "a-dangling-link")}
    return [kind for kind in kinds if kind[0] not in harmless.get(name, ())]


def outs() -> list[Case]:
    cases = [
        make_case(f"out-{name}", "--out", path, names=(called,), make=make)
        for name, path, called, make in (*NO_PLACE, *NO_FOLDER)
        for make_case in (train, compare)
    ]
    cases += [
        train(
            f"out-with-{kind}-as-{name.replace('/', '-')}{''.join(over)}",
            "--out=out",
            *over,
            names=(name,),
            make=make,
        )
        for name in OWN_OF_TRAIN
        for kind, make in theirs(name)
        for over in ((), ("--overwrite",))
    ]
    cases += [
        compare(f"out-with-{kind}-as-{name}{''.join(over)}", *over, names=(name,), make=make)
        for name in OWN_OF_COMPARE
        for kind, make in theirs(name)
        for over in ((), ("--overwrite",))
    ]
    nobodys: tuple[Maker, ...] = (folder("out", 0o555),)
    return [
        *cases,
        train("out-that-leaves-names-no-room", f"--out={ALMOST_TOO_LONG}", names=("shorter --out",)),
        compare("out-that-leaves-names-no-room", f"--out={ALMOST_TOO_LONG}", names=("shorter --out",)),
        train("out-of-a-run", "--out=out", names=("out", "--overwrite|overwrit"), make=(finished("run"),)),
        train("out-of-a-comparison", "--out=out", names=("out",), make=(finished("comparison"),)),
        train(
            "out-of-a-comparison-overwritten",
            "--out=out",
            "--overwrite",
            names=("out",),
            make=(finished("comparison"),),
        ),
        compare("out-of-a-run", names=("out",), make=(finished("run"),)),
        compare("out-of-a-run-overwritten", "--overwrite", names=("out",), make=(finished("run"),)),
        compare("out-of-a-comparison", names=("out", "--overwrite|overwrit"), make=(finished("comparison"),)),
        compare(
            "out-of-a-comparison-cut-short",
            names=("out", "--overwrite|overwrit"),
            make=(finished("comparison"), removed("out/summary.json")),
        ),
        train("out-that-is-read-only", "--out=out", names=("out",), make=nobodys, as_nobody=True),
        compare("out-that-is-read-only", names=("out",), make=nobodys, as_nobody=True),
        train(
            "out-in-a-read-only-folder",
            "--out=d/run",
            names=("d",),
            make=(folder("d", 0o555),),
            as_nobody=True,
        ),
        train(
            "out-in-an-unsearchable-folder",
            "--out=d/run",
            names=("d",),
            make=(folder("d", 0o000),),
            as_nobody=True,
        ),
        train(
            "overwrite-in-a-read-only-run",
            "--out=out",
            "--overwrite",
            names=("out",),
            make=(finished("run"), mode("out", 0o555)),
            leaves=("out/.flashoptim-run.lock",),
            as_nobody=True,
        ),
        train(
            "resume-in-a-read-only-run",
            "--out=out",
            "--resume",
            "--steps=2",
            names=("out",),
            make=(finished("run"), mode("out", 0o555), mode("out/metrics.csv", 0o444)),
            leaves=("out/.flashoptim-run.lock",),
            as_nobody=True,
        ),
        # Checkpoints that cannot be written are noticed before the first step, not by the first of them.
        *(
            train(
                f"{over[0][2:]}-where-checkpoints-are-read-only",
                "--out=out",
                *over,
                names=("out/checkpoints",),
                make=(finished("run"), mode("out/checkpoints", 0o555)),
                leaves=("out/.flashoptim-run.lock",),
                as_nobody=True,
            )
            for over in (
                ("--overwrite",),
                ("--resume", "--steps=2"),
                ("--no-final-checkpoint", "--overwrite"),
            )
        ),
        train(
            "out-with-a-link-to-a-read-only-folder-as-checkpoints",
            "--out=out",
            names=("checkpoints",),
            make=(folder("d", 0o555), folder("out"), link("out/checkpoints", "../d")),
            leaves=("out",),
            as_nobody=True,
        ),
        train("out-of-a-live-run", "--out=out", names=("out", "use"), make=(live(),)),
        train("overwrite-of-a-live-run", "--out=out", "--overwrite", names=("out", "use"), make=(live(),)),
        train(
            "resume-of-a-live-run",
            "--out=out",
            "--resume",
            "--steps=1000000",
            names=("out", "use"),
            make=(live(),),
        ),
        compare("out-of-a-live-run", names=("out", "use"), make=(live(),)),
        compare("overwrite-of-a-live-run", "--overwrite", names=("out", "use"), make=(live(),)),
    ]


def outs_among_the_data() -> list[Case]:
    """The next run would train on what this one leaves, and nothing could go on from it."""
    text = file("d/a.txt", b"words " * 900)
    places: list[tuple[str, tuple[Argument, ...], tuple[str, ...], tuple[Maker, ...]]] = [
        ("the-data", ("--data=d", "--out=d"), ("d", "data folder"), (text,)),
        ("a-folder-of-the-data", ("--data=d", "--out=d/run"), ("d/run", "data folder"), (text,)),
        (
            "deep-in-the-data",
            ("--data=./d/", "--out=d/../d/a/b/run/"),
            ("run", "data folder"),
            (text, folder("d/a/b")),
        ),
        (
            "behind-a-link-into-the-data",
            ("--data=d", "--out=link"),
            ("link", "data folder"),
            (text, link("link", "d/run")),
        ),
        (
            "in-the-data-behind-a-link",
            ("--data=link", "--out=d/run"),
            ("d/run", "data folder"),
            (text, link("link", "d")),
        ),
        (
            "in-the-validation-data",
            ("--validation-data=d", "--out=d/run"),
            ("d/run", "data folder"),
            (text,),
        ),
    ]
    cases = [
        make_case(f"out-{name}", *arguments, names=names, make=make)
        for name, arguments, names, make in places
        for make_case in (train, compare)
    ]
    run = (finished("run"),)
    names = [
        ("metrics", "out/metrics.csv", run),
        ("summary", "out/summary.json", run),
        ("checkpoints", f"{STEP}/checkpoint.json", run),
        ("metrics-behind-a-link", "link", (*run, link("link", "out/metrics.csv"))),
    ]
    return [
        *cases,
        *(
            train(
                f"data-that-is-{name}-of-the-run",
                f"--data={path}",
                "--out=out",
                "--overwrite",
                names=(path,),
                make=make,
            )
            for name, path, make in names
        ),
    ]


def resume(
    name: str, *arguments: Argument, names: tuple[str, ...], make: tuple[Maker, ...] = (), **more: object
) -> Case:
    return train(f"resume-{name}", "--steps=2", *arguments, names=names, make=make, **more)


def damage(name: str) -> list[tuple[str, Maker]]:
    """What may have happened to a file of a checkpoint."""
    return [
        ("missing", removed(name)),
        ("empty", changed(name, lambda _: b"")),
        ("cut", changed(name, lambda content: content[: len(content) // 2])),
        (
            "one-bit-wrong",
            changed(name, lambda content: content[:-9] + bytes([content[-9] ^ 4]) + content[-8:]),
        ),
        ("foreign", changed(name, lambda _: b"PK\x03\x04" * 500)),
    ]


def resumes() -> list[Case]:
    out = ("--resume", "--out=out")
    run = (finished("run"),)
    beside = ("--resume=out", "--out=other")
    cases = [
        resume(f"{file_name.split('.')[0]}-{kind}", *out, names=(file_name,), make=(*run, harm))
        for file_name in ("weights.safetensors", "optimizer.safetensors", "checkpoint.json")
        for kind, harm in damage(f"{STEP}/{file_name}")
    ]
    documents = {
        "an-array": b"[]",
        "a-number": b"7",
        "deep": b"[" * 100_000,
        "null": b"null",
        "no-json": b"{'kind': 1}",
        "no-utf8": b'{"kind": "\xff"}',
        "another-kind": b'{"kind": "theirs"}',
        "huge-number": b'{"step": 1e99999, "files": {}}',
    }
    cases += [
        resume(
            f"checkpoint-that-is-{kind}",
            *out,
            names=("step-00000001|checkpoint.json",),
            make=(*run, file(f"{STEP}/checkpoint.json", document)),
        )
        for kind, document in documents.items()
    ]
    places: list[tuple[str, str, str, tuple[Maker, ...]]] = [
        ("missing", "nothing", "nothing", ()),
        ("file", "text.txt", "text.txt", ()),
        ("fifo", "pipe", "pipe", (fifo("pipe"),)),
        ("device", "null", "null", (null("null"),)),
        ("empty-folder", "d", "d", (folder("d"),)),
        ("dangling-link", "link", "link", (link("link", "gone"),)),
        ("link-to-itself", "link", "link", (link("link", "link"),)),
        ("below-a-file", "text.txt/run", "text.txt/run", ()),
        ("name-too-long", LONG, "nnnnnnnn", ()),
        ("newline-in-its-name", "a\nb", "a\\nb", ()),
        ("escape-in-its-name", "\x1b[7m", "\\x1b[7m", ()),
        ("comparison", "c", "c", (finished("comparison", "c"),)),
        ("empty-step", "d", "d", (folder("d/checkpoints/step-00000009"),)),
        ("steps-of-others", "d", "d", (file("d/checkpoints/step-9/a"), file("d/checkpoints/step-x/a"))),
        ("checkpoints-that-are-a-file", "d", "d", (file("d/checkpoints", b"x"),)),
        ("checkpoints-in-a-circle", "d", "d", (link("d/checkpoints", "checkpoints"),)),
        ("empty-name", "", "--resume", ()),
    ]
    cases += [
        resume(f"of-{name}", f"--resume={path}", "--out=other", names=(called,), make=make)
        for name, path, called, make in places
    ]
    other_data = file("other.txt", bytes(range(97, 123)) * 520)
    options = [
        ("another-model", ("--model=llama-1m",), ("dim|model",)),
        ("tied-weights", ("--tied",), ("tied",)),
        ("another-optimizer", ("--optimizer=lion",), ("optimizer|rule",)),
        ("another-format", ("--format=paper",), ("format",)),
        ("other-master-bits", ("--master-bits=32",), ("master",)),
        ("another-seed", ("--seed=5",), ("seed",)),
        ("another-batch", ("--batch=4",), ("batch",)),
        ("another-sequence", ("--sequence=16",), ("sequence",)),
        ("another-vocabulary", ("--vocabulary-size=300",), ("vocabulary",)),
        ("other-data", ("--data=other.txt",), ("other.txt", "--allow-other-data")),
        ("other-validation-data", ("--validation-data=other.txt",), ("validation",)),
    ]
    cases += [
        resume(f"with-{name}", *out, *arguments, names=names, make=(*run, other_data))
        for name, arguments, names in options
    ]
    foreign = json.dumps({"kind": "theirs"}).encode()
    return [
        *cases,
        resume(
            "data-of-the-same-length",
            *out,
            names=("text.txt", "--allow-other-data"),
            make=(*run, changed("text.txt", lambda text: text[:5000] + b"#" + text[5001:])),
        ),
        resume("without-out", "--resume", names=("--out",)),
        resume("of-a-run-without-out", "--resume=out", names=("--out",), make=run),
        resume("of-nothing-in-out", *out, names=("out",)),
        resume("of-an-empty-out", *out, names=("out",), make=(folder("out"),)),
        resume("of-a-run-without-checkpoints", *out, names=("out",), make=(*run, removed("out/checkpoints"))),
        resume("of-a-run-with-an-empty-step", *out, names=("out",), make=(*run, removed(STEP), folder(STEP))),
        resume(
            "into-another-run",
            "--resume=other",
            "--out=out",
            names=("out",),
            make=(*run, finished("run", "other")),
        ),
        resume(
            "into-a-comparison",
            "--resume=out",
            "--out=c",
            names=("c",),
            make=(*run, finished("comparison", "c")),
        ),
        resume("of-a-comparison-in-out", *out, names=("out",), make=(finished("comparison"),)),
        resume("into-a-file", "--resume=out", "--out=text.txt", names=("text.txt",), make=run),
        resume(
            "into-their-summary",
            *beside,
            names=("summary.json",),
            make=(*run, file("other/summary.json", foreign)),
        ),
        resume(
            "with-their-metrics",
            *out,
            names=("metrics.csv",),
            make=(*run, file("out/metrics.csv", b"a,b,c\n1,2,3\n")),
            leaves=("out/.flashoptim-run", "out/.flashoptim-run.lock"),
        ),
        resume(
            "with-a-fifo-for-metrics",
            *out,
            names=("metrics.csv",),
            make=(*run, removed("out/metrics.csv"), fifo("out/metrics.csv")),
        ),
        resume(
            "unreadable-checkpoint",
            *out,
            names=("step-00000001",),
            make=(*run, mode(STEP, 0o000)),
            as_nobody=True,
        ),
        resume(
            "unreadable-metrics",
            *out,
            names=("metrics.csv",),
            make=(*run, mode("out/metrics.csv", 0o000)),
            as_nobody=True,
        ),
        resume(
            "unreadable-weights",
            *out,
            names=("weights.safetensors",),
            make=(*run, mode(f"{STEP}/weights.safetensors", 0o000)),
            as_nobody=True,
        ),
        resume(
            "unreadable-checkpoints",
            *out,
            names=("checkpoints",),
            make=(*run, mode("out/checkpoints", 0o000)),
            as_nobody=True,
        ),
    ]


CASES = [*outs(), *outs_among_the_data(), *resumes()]
