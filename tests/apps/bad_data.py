"""Bad inputs: what --data and --validation-data may name that is no data."""

from __future__ import annotations

import gzip
import stat
import struct

from bad_input import (
    Argument,
    Case,
    Maker,
    compare,
    fifo,
    file,
    folder,
    link,
    mode,
    node,
    null,
    socket,
    train,
)

TEXT = "".join(f"{n} and {n} make {2 * n}\n" for n in range(400)).encode()
TOKENS = b"".join(struct.pack("<H", n * 7 % 256) for n in range(4000))
LONG = "n" * 300


def header(magic: int, version: int, tokens: int) -> bytes:
    return struct.pack("<3i", magic, version, tokens).ljust(1024, b"\0")


def tokens(*values: int, width: str = "I", count: int = 4000) -> bytes:
    return struct.pack(f"<{count}{width}", *(values[n % len(values)] for n in range(count)))


# name, path, what it must be called, what lies there
PLACES: list[tuple[str, Argument, str, tuple[Maker, ...]]] = [
    ("missing", "nope.txt", "nope.txt", ()),
    ("missing-below-folders", "no/such/file.txt", "no/such/file.txt", ()),
    ("named-by-nothing", "", "--data|--validation-data", ()),
    ("empty-file", "empty.txt", "empty.txt", (file("empty.txt"),)),
    ("empty-token-file", "empty.bin", "empty.bin", (file("empty.bin"),)),
    ("empty-folder", "folder", "folder", (folder("folder"),)),
    ("folder-of-hidden-files", "folder", "folder", (file("folder/.hidden.txt", TEXT),)),
    ("folder-of-empty-files", "folder", "folder", (file("folder/a.txt"), file("folder/b.txt"))),
    ("folder-of-empty-folders", "folder", "folder", (folder("folder/a/b"), folder("folder/c"))),
    ("fifo", "pipe", "pipe", (fifo("pipe"),)),
    ("fifo-of-tokens", "pipe.bin", "pipe.bin", (fifo("pipe.bin"),)),
    ("fifo-behind-a-link", "link.txt", "link.txt", (fifo("pipe"), link("link.txt", "pipe"))),
    ("socket", "socket", "socket", (socket("socket"),)),
    ("device", "null", "null", (null("null"),)),
    ("endless-device", "zero", "zero", (node("zero", stat.S_IFCHR, 0x105),)),
    ("standard-input", "-", "-", ()),
    ("dangling-link", "link.txt", "link.txt", (link("link.txt", "gone.txt"),)),
    ("link-to-itself", "link.txt", "link.txt", (link("link.txt", "link.txt"),)),
    ("links-in-a-circle", "a.txt", "a.txt", (link("a.txt", "b.txt"), link("b.txt", "a.txt"))),
    ("below-a-file", "text.txt/more.txt", "text.txt/more.txt", ()),
    ("name-too-long", LONG, "nnnnnnnn", ()),
    ("path-too-long", "d/" * 3000 + "text.txt", "d/d/", ()),
    ("newline-in-its-name", "no\nsuch\nfile.txt", "no\\nsuch\\nfile.txt", ()),
    ("return-in-its-name", "no\rfile.txt", "no\\rfile.txt", ()),
    ("escape-in-its-name", "\x1b[31mred\x1b[0m.txt", "\\x1b[31mred\\x1b[0m.txt", ()),
    ("c1-control-in-its-name", "\x9b31mred.txt", "31mred.txt", ()),
    ("bytes-that-are-no-utf8-in-its-name", b"caf\xe9.txt", "caf\\xe9.txt", ()),
    ("percent-and-braces-in-its-name", "%s%n{}{0}.txt", "%s%n{}{0}.txt", ()),
    ("quotes-in-its-name", 'it\'s "so".txt', 'it\'s "so".txt', ()),
    ("spaces-around-its-name", " text.txt ", " text.txt ", ()),
    ("newline-in-the-name-of-an-empty-file", "a\nb.txt", "a\\nb.txt", (file("a\nb.txt"),)),
]

# name, path, what must be named, what lies there: found by its content
CONTENTS: list[tuple[str, Argument, tuple[str, ...], tuple[Maker, ...]]] = [
    ("latin-1", "a.txt", ("a.txt", "9"), (file("a.txt", b"It is caf\xe9 time. " * 300),)),
    ("utf-16", "a.txt", ("a.txt", "UTF-8"), (file("a.txt", TEXT.decode().encode("utf-16")),)),
    ("cut-within-a-character", "a.txt", ("a.txt", "UTF-8"), (file("a.txt", TEXT + "ü".encode()[:1]),)),
    ("surrogates", "a.txt", ("a.txt", "UTF-8"), (file("a.txt", TEXT + b"\xed\xa0\x80"),)),
    ("gzip", "a.txt.gz", ("a.txt.gz", "gzip"), (file("a.txt.gz", gzip.compress(TEXT)),)),
    (
        "one-bad-file-among-good-ones",
        "d",
        ("d/sub/b.txt",),
        (file("d/a.txt", TEXT), file("d/sub/b.txt", b"\xff")),
    ),
    ("tokens-among-texts", "d", ("d/b.bin",), (file("d/a.txt", TEXT), file("d/b.bin", tokens(65, 66)))),
    (
        "tokens-like-text-among-texts",
        "d",
        ("d/b.bin",),
        (file("d/a.txt", TEXT), file("d/b.bin", b"AB" * 999)),
    ),
    ("too-short", "a.txt", ("a.txt", "32|33"), (file("a.txt", b"ten bytes\n"),)),
    ("too-short-tokens", "a.bin", ("a.bin", "32|33"), (file("a.bin", b"ten bytes\n"),)),
    ("odd-bytes", "a.bin", ("a.bin", "8001"), (file("a.bin", TOKENS + b"x"),)),
    (
        "other-version",
        "a.bin",
        ("a.bin", "version", "2"),
        (file("a.bin", header(20240520, 2, 4000) + TOKENS),),
    ),
    (
        "truncated",
        "a.bin",
        ("a.bin", "4000", "3990"),
        (file("a.bin", header(20240520, 1, 4000) + TOKENS[:-20]),),
    ),
    (
        "longer-than-announced",
        "a.bin",
        ("a.bin", "4000"),
        (file("a.bin", header(20240520, 1, 4000) + TOKENS * 2),),
    ),
    ("negative-count", "a.bin", ("a.bin", "-1"), (file("a.bin", header(20240520, 1, -1) + TOKENS),)),
    ("header-alone", "a.bin", ("a.bin",), (file("a.bin", header(20240520, 1, 0)),)),
    ("header-cut", "a.bin", ("a.bin",), (file("a.bin", header(20240520, 1, 4000)[:512]),)),
    (
        "llama3-version",
        "a.bin",
        ("a.bin", "version"),
        (file("a.bin", header(20240801, 1, 4000) + tokens(5)),),
    ),
    ("evaluation-file", "a.bin", ("a.bin", "evaluation"), (file("a.bin", header(20240522, 1, 10) + TOKENS),)),
    ("gpt2-model", "a.bin", ("a.bin", "model"), (file("a.bin", header(20240326, 3, 1024) + TOKENS),)),
    ("gpt2-model-bf16", "a.bin", ("a.bin", "model"), (file("a.bin", header(20240326, 5, 1024) + TOKENS),)),
    ("llama3-model", "a.bin", ("a.bin", "model"), (file("a.bin", header(20240803, 3, 1024) + TOKENS),)),
    ("tokenizer", "a.bin", ("a.bin", "tokenizer"), (file("a.bin", header(20240328, 2, 50257) + TOKENS),)),
    ("debug-state", "a.bin", ("a.bin",), (file("a.bin", header(20240327, 2, 4) + TOKENS),)),
    ("unknown-magic", "a.bin", ("a.bin", "20241231"), (file("a.bin", header(20241231, 1, 4000) + TOKENS),)),
    ("uint32-at-default-width", "a.bin", ("a.bin", "--token-width"), (file("a.bin", tokens(5, 77, 199)),)),
    ("zip", "a.bin", ("a.bin",), (file("a.bin", b"PK\x03\x04" + TOKENS),)),
    ("numpy", "a.bin", ("a.bin",), (file("a.bin", b"\x93NUMPY\x01\x00" + TOKENS),)),
    ("gzip-tokens", "a.bin", ("a.bin",), (file("a.bin", (b"\x1f\x8b\x08\x00" + TOKENS)),)),
    ("gguf", "a.bin", ("a.bin",), (file("a.bin", b"GGUF\x03\0\0\0" + TOKENS),)),
]

# Where a width or a vocabulary is given with the file.
WITH_OPTIONS = [
    train(
        "data-odd-words",
        "--data=a.bin",
        "--token-width=32",
        names=("a.bin", "8002"),
        make=(file("a.bin", TOKENS + b"ab"),),
    ),
    train(
        "data-token-beyond-the-given-vocabulary",
        "--data=a.bin",
        "--vocabulary-size=100",
        names=("a.bin", "vocabulary", "100"),
        make=(file("a.bin", TOKENS),),
    ),
    train(
        "data-token-beyond-every-vocabulary",
        "--data=a.bin",
        "--token-width=32",
        names=("a.bin", "4294967295"),
        make=(file("a.bin", tokens(5, 4294967295)),),
    ),
    train(
        "data-uint16-as-uint32",
        "--data=a.bin",
        "--token-width=32",
        names=("a.bin|vocabulary",),
        make=(file("a.bin", TOKENS),),
    ),
    train(
        "data-header-token-beyond-the-vocabulary",
        "--data=a.bin",
        "--model=llama-tiny",
        "--vocabulary-size=300",
        names=("a.bin", "300"),
        make=(file("a.bin", header(20240520, 1, 4000) + tokens(500, width="H")),),
    ),
    train(
        "data-two-widths",
        "--data=d",
        names=("d/b.bin", "width"),
        make=(
            file("d/a.bin", header(20240520, 1, 4000) + TOKENS),
            file("d/b.bin", header(20240801, 7, 4000) + tokens(5)),
        ),
    ),
    train("data-vocabulary-under-that-of-text", "--vocabulary-size=100", names=("vocabulary", "100", "256")),
    train(
        "data-validation-beyond-the-vocabulary",
        "--validation-data=v.bin",
        names=("v.bin", "256"),
        make=(file("v.bin", tokens(5, 60000, width="H")),),
    ),
    train("data-sequence-longer-than-the-text", "--sequence=100000", names=("text.txt", "100001|100000")),
    train(
        "data-fraction-that-leaves-too-little-to-validate",
        "--validation-fraction=0.001",
        names=("text.txt", "validation"),
    ),
    train(
        "data-fraction-that-leaves-too-little-to-train",
        "--validation-fraction=0.999",
        names=("text.txt", "training"),
    ),
]

NOBODYS = [
    train(
        "data-unreadable",
        "--data=a.txt",
        names=("a.txt", "permission|Permission"),
        make=(file("a.txt", TEXT, 0o000),),
        as_nobody=True,
    ),
    train(
        "data-unreadable-tokens",
        "--data=a.bin",
        names=("a.bin", "permission|Permission"),
        make=(file("a.bin", TOKENS, 0o000),),
        as_nobody=True,
    ),
    train(
        "data-unreadable-folder",
        "--data=d",
        names=("d",),
        make=(file("d/a.txt", TEXT), mode("d", 0o000)),
        as_nobody=True,
    ),
    train(
        "data-unreadable-subfolder",
        "--data=d",
        names=("d/sub",),
        make=(file("d/a.txt", TEXT), file("d/sub/b.txt", TEXT), mode("d/sub", 0o000)),
        as_nobody=True,
    ),
    train(
        "data-unsearchable-folder",
        "--data=d",
        names=("d",),
        make=(file("d/a.txt", TEXT), mode("d", 0o444)),
        as_nobody=True,
    ),
    train(
        "data-in-an-unsearchable-folder",
        "--data=d/a.txt",
        names=("d/a.txt",),
        make=(file("d/a.txt", TEXT), mode("d", 0o000)),
        as_nobody=True,
    ),
    train(
        "validation-data-unreadable",
        "--validation-data=a.txt",
        names=("a.txt",),
        make=(file("a.txt", TEXT, 0o000),),
        as_nobody=True,
    ),
    train(
        "data-one-unreadable-file-of-a-folder",
        "--data=d",
        names=("d/b.txt",),
        make=(file("d/a.txt", TEXT), file("d/b.txt", TEXT, 0o000)),
        as_nobody=True,
    ),
]


def everywhere(name: str, path: Argument, names: tuple[str, ...], make: tuple[Maker, ...]) -> list[Case]:
    """The same bad data for a run, for its validation and for a comparison."""
    separate = (path,)
    return [
        train(f"data-{name}", "--data", *separate, names=names, make=make),
        train(f"validation-data-{name}", "--validation-data", *separate, names=names, make=make),
        compare(f"data-{name}", "--data", *separate, names=names, make=make),
    ]


CASES = [
    *(case for name, path, named, make in PLACES for case in everywhere(name, path, (named,), make)),
    *(train(f"data-{name}", "--data", path, names=names, make=make) for name, path, names, make in CONTENTS),
    # Beside text, whose vocabulary most tokens leave: that may be said first.
    *(
        train(f"validation-data-{name}", "--validation-data", path, names=names[:1], make=make)
        for name, path, names, make in CONTENTS
    ),
    *WITH_OPTIONS,
    *NOBODYS,
    train("data-leading-dash", "--data=-nope.txt", names=("-nope.txt",)),
    train("data-leading-dash-typed-apart", "--data", "-nope.txt", names=("-nope.txt|--data",)),
    train("data-not-given-a-value", "--data", names=("--data",)),
]
