"""Bad inputs: options of the wrong type, beyond their range, empty, unknown,
misspelt, or against each other."""

from __future__ import annotations

from bad_input import Case, bench, compare, train
from command import TINY

# What is no whole number, or none that a machine holds; the value saturates or wraps
# where it is read carelessly.
NO_INTEGER = {
    "word": "abc",
    "empty": "",
    "blank": " ",
    "fraction": "1.5",
    "exponent": "1e3",
    "hexadecimal": "0x10",
    "trailing-text": "5x",
    "trailing-blank": "5 ",
    "leading-blank": " 5",
    "newline": "5\n",
    "separator": "1,000",
    "underscore": "1_000",
    "arabic-digit": "٣",
    "not-a-number": "nan",
    "beyond-64-bits": "99999999999999999999",
    "far-below": "-99999999999999999999",
    "2-to-64": "18446744073709551616",
    "escape": "\x1b[2J7",
}
# The words by which a message may call an option.
INTEGERS = {
    "--steps": "--steps|number of steps",
    "--batch": "--batch|batch size",
    "--sequence": "--sequence|sequence",
    "--accumulation": "--accumulation|accumulat",
    "--warmup": "--warmup|warm-up",
    "--eval-every": "--eval-every|evaluation interval",
    "--eval-batches": "--eval-batches|evaluation batches",
    "--threads": "--threads|threads",
    "--checkpoint-every": "--checkpoint-every|checkpoint interval",
    "--keep-checkpoints": "--keep-checkpoints|kept checkpoints",
    "--seed": "--seed",
    "--vocabulary-size": "--vocabulary-size|vocabulary",
    "--token-width": "--token-width",
    "--master-bits": "--master-bits",
}
BEYOND = {
    "--steps": ("0", "-1", "9223372036854775807"),
    "--batch": ("0", "-1", "4611686018427387904", "9223372036854775807", "1000000000000"),
    "--sequence": ("0", "-1", "4611686018427387904", "9223372036854775807"),
    "--accumulation": ("0", "-1", "4611686018427387904", "9223372036854775807"),
    "--warmup": ("-1",),
    "--eval-every": ("0", "-1"),
    "--eval-batches": ("0", "-1", "4611686018427387904", "9223372036854775807"),
    "--threads": ("-1", "100000", "2147483647", "2147483648"),
    "--checkpoint-every": ("-1",),
    "--keep-checkpoints": ("-1",),
    "--seed": ("-1",),
    "--vocabulary-size": ("0", "-1", "255", "1000000000000", "9223372036854775807"),
    "--token-width": ("0", "8", "64", "-16"),
    "--master-bits": ("0", "8", "33", "-24"),
}
NO_REAL = {
    "word": "abc",
    "empty": "",
    "comma": "0,5",
    "trailing-text": "0.5x",
    "two-points": "0.5.5",
    "not-a-number": "nan",
    "infinite": "inf",
    "negatively-infinite": "-inf",
    "beyond-doubles": "1e999",
    "negative": "-1",
    "leading-blank": " 0.5",
}
REALS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    # name in a message; values beyond the range; options under which it is read
    "--validation-fraction": ("--validation-fraction|validation fraction", ("0", "1", "2"), ()),
    "--lr": ("--lr|learning rate", (), ()),  # any finite one is taken, and its loss tells: exit code 3
    "--min-lr-ratio": ("--min-lr-ratio|minimum|ratio", ("1.5",), ()),
    "--clip": ("--clip|clipping norm", (), ()),
    "--loss-factor": ("--loss-factor|loss factor", ("0",), ()),
    "--weight-decay": ("--weight-decay|weight decay|weight_decay", ("1e300",), ()),
    "--beta1": ("--beta1|beta1", ("1", "1.5"), ()),
    "--beta2": ("--beta2|beta2", ("1", "1.5"), ()),
    "--eps": ("--eps|epsilon", ("1e300",), ()),
    "--momentum": ("--momentum|momentum", ("1e300",), ("--optimizer=sgd",)),
}
CHOICES = {
    "--model": ("model", "llama-tiny"),
    "--optimizer": ("optimizer", "adamw"),
    "--format": ("format", "native"),
    "--schedule": ("schedule", "cosine"),
    "--device": ("device", "cpu"),
}
NO_CHOICE: dict[str, str | bytes] = {
    "empty": "",
    "misspelt": "adamww",
    "upper-case": "CPU",
    "two": "adamw,sgd",
    "path": "../../etc/passwd",
    "newline": "cos\nine",
    "escape": "\x1b]0;title\x07",
    "no-utf8": b"native" + b"\xff",
    "very-long": "x" * 100_000,
}


def typed(option: str, value: str) -> tuple[str, ...]:
    """Apart as most type it, but where the value would be taken for an option."""
    return (f"{option}={value}",) if value.startswith("-") else (option, value)


def integers() -> list[Case]:
    cases = [
        train(f"{option[2:]}-{kind}", *typed(option, value), names=(name,))
        for option, name in INTEGERS.items()
        for kind, value in NO_INTEGER.items()
        # Every option with every kind would be 250 cases of one reader of numbers: three options take
        # all kinds, the others these.
        if option in ("--steps", "--seed", "--threads")
        or kind in ("word", "empty", "fraction", "trailing-text", "beyond-64-bits", "2-to-64")
    ]
    cases += [
        train(f"{option[2:]}-of-{value}", f"{option}={value}", names=(INTEGERS[option],))
        for option, values in BEYOND.items()
        for value in values
    ]
    return cases + [train(f"{option[2:]}-without-a-value", option, names=(option,)) for option in INTEGERS]


def reals() -> list[Case]:
    cases = [
        train(f"{option[2:]}-{kind}", *under, *typed(option, value), names=(name,))
        for option, (name, _, under) in REALS.items()
        for kind, value in NO_REAL.items()
        if option in ("--lr", "--clip")
        or kind in ("word", "empty", "not-a-number", "infinite", "beyond-doubles", "negative")
    ]
    return cases + [
        train(f"{option[2:]}-of-{value}", *under, f"{option}={value}", names=(name,))
        for option, (name, values, under) in REALS.items()
        for value in values
    ]


def choices() -> list[Case]:
    return [
        train(f"{option[2:]}-{kind}", option, value, names=(name,) if kind == "empty" else (name, good))
        for option, (name, good) in CHOICES.items()
        for kind, value in NO_CHOICE.items()
        if option == "--optimizer" or kind in ("empty", "misspelt", "upper-case", "newline", "very-long")
    ]


def products() -> list[Case]:
    """Each fits, together they do not."""
    return [
        train(
            "product-of-batch-and-sequence",
            "--batch=2147483647",
            "--sequence=2147483647",
            names=("--batch|batch|--sequence|sequence",),
        ),
        train(
            "product-with-accumulation",
            "--batch=65536",
            "--accumulation=9007199254740993",
            names=("--accumulation|accumulat",),
        ),
        train(
            "product-with-evaluation",
            "--batch=65536",
            "--eval-batches=9007199254740993",
            names=("--eval-batches|evaluation",),
        ),
        train("product-that-memory-lacks", "--batch=1000000", "--sequence=200", names=("memory",)),
        train("model-that-memory-lacks", "--model=llama-8b", "--format=fp32", names=("memory", "GiB|TiB")),
        compare("model-that-memory-lacks", "--model=llama-8b", "--formats=fp32", names=("memory", "GiB|TiB")),
        train("vocabulary-that-memory-lacks", "--vocabulary-size=2000000000", names=("memory|vocabulary",)),
    ]


def excluded() -> list[Case]:
    return [
        train("tied-and-untied", "--tied", "--untied", names=("tied",)),
        train(
            "release-that-clips",
            "--gradient-release",
            "--clip=1",
            names=("gradient release|--gradient-release", "clip"),
        ),
        train(
            "release-that-accumulates",
            "--gradient-release",
            "--clip=0",
            "--accumulation=2",
            names=("accumulat",),
        ),
        train("16-bits-in-paper", "--format=paper", "--master-bits=16", names=("16", "paper")),
        train(
            "nesterov-without-momentum",
            "--optimizer=sgd",
            "--nesterov",
            "--momentum=0",
            names=("esterov", "momentum"),
        ),
        train("checkpoints-without-out", "--checkpoint-every=1", names=("out",)),
        train("warmup-longer-than-the-run", "--warmup=5", names=("--warmup|warm-up",)),
        train("flag-with-a-word", "--nesterov=maybe", names=("--nesterov",)),
        train("flag-with-a-number", "--overwrite=7", names=("--overwrite",)),
        train("flag-negated-with-a-word", "--no-final-checkpoint=maybe", names=("--no-final-checkpoint",)),
        train("device-that-is-not-there", "--device=cuda:99", names=("cuda:99",)),
        train("device-with-a-bad-number", "--device=cuda:-1", names=("cuda:-1",)),
        train("device-with-a-huge-number", "--device=cuda:99999999999", names=("cuda:99999999999",)),
        train("device-of-another-kind", "--device=meta", names=("meta", "cpu")),
        compare("optimizer-unknown", "--optimizers=adamw,adagrad", names=("adagrad", "lion")),
        compare("optimizer-empty", "--optimizers=", names=("optimizer",)),
        compare("optimizer-empty-among-others", "--optimizers=adamw,,sgd", names=("optimizer",)),
        compare("format-unknown", "--formats=native,int3", names=("int3", "paper")),
        compare("format-empty", "--formats=", names=("format",)),
        compare("format-twice", "--formats=native,native", names=("native", "--formats")),
        compare("optimizer-twice", "--optimizers=sgd,adamw,sgd", names=("sgd", "--optimizers")),
        compare("seed-twice", "--seeds=1,2,1", names=("1", "--seeds")),
        compare("seed-word", "--seeds=1,two", names=("--seeds", "two")),
        compare("seed-negative", "--seeds=-1", names=("--seeds",)),
        compare("seed-beyond-64-bits", "--seeds=18446744073709551616", names=("--seeds",)),
        compare("seed-empty", "--seeds=", names=("--seeds",)),
        compare(
            "nesterov-without-momentum-in-the-second",
            "--optimizers=adamw,sgd",
            "--nesterov",
            "--momentum=0",
            names=("esterov", "momentum"),
        ),
        compare("beta2-of-1", "--beta2=1", names=("beta2",)),
        compare("beta1-of-1-in-the-second", "--optimizers=lion,adamw", "--beta1=1", names=("beta1",)),
        compare(
            "release-that-clips",
            "--with-gradient-release",
            "--clip=1",
            names=("gradient release|gradient-release", "clip"),
        ),
        compare(
            "release-that-accumulates",
            "--with-gradient-release",
            "--clip=0",
            "--accumulation=2",
            names=("accumulat",),
        ),
        compare("16-bits-in-paper", "--formats=paper", "--master-bits=16", names=("16", "paper")),
        compare("batch-of-2-to-62", "--batch=4611686018427387904", names=("--batch|batch size",)),
        compare("steps-of-0", "--steps=0", names=("--steps|steps",)),
        compare("steps-beyond-64-bits", "--steps=99999999999999999999", names=("--steps",)),
        compare("threads-of-100000", "--threads=100000", names=("--threads|threads",)),
        compare("model-unknown", "--model=llama-9000b", names=("llama-9000b", "llama-tiny")),
        compare("device-that-is-not-there", "--device=cuda:99", names=("cuda:99",)),
    ]


def plain(name: str, *arguments: str | bytes, names: tuple[str, ...]) -> Case:
    """Nothing but these arguments."""
    return Case(name, arguments, names)


def words() -> list[Case]:
    data = ("--data", "text.txt", *map(str, TINY))
    return [
        plain("nothing-at-all", names=("subcommand", "train|--help")),
        plain("unknown-subcommand", "trian", names=("trian", "train")),
        plain("subcommand-in-capitals", "TRAIN", names=("TRAIN", "train")),
        plain("subcommand-of-control-characters", "\x1b[2J\n", names=("\\x1b[2J\\n",)),
        plain("subcommand-that-is-no-utf8", b"tr\xc3in", names=("tr\\xc3in",)),
        plain("empty-subcommand", "", names=("subcommand|''|\"\"",)),
        plain("two-subcommands", "bench", "train", "--list-models", names=("bench|train",)),
        plain("unknown-option-before-the-subcommand", "--verbose", "train", names=("--verbose",)),
        plain("subcommand-behind-its-options", *data, "train", names=("--data|train",)),
        plain("train-alone", "train", names=("--data",)),
        plain("train-without-data", "train", "--steps", "1", names=("--data",)),
        plain("train-without-steps", "train", *data, names=("--steps",)),
        plain("train-with-a-mistyped-steps", "train", *data, "--step", "1", names=("--step", "--steps")),
        plain("train-with-swapped-letters", "train", *data, "--stpes", "1", names=("--stpes", "--steps")),
        plain(
            "train-with-a-mistyped-data",
            "train",
            "--date",
            "text.txt",
            "--steps=1",
            names=("--date", "--data"),
        ),
        plain("train-with-one-dash", "train", *data, "-steps", "1", names=("-steps|-s", "--steps")),
        plain("train-with-an-em-dash", "train", *data, "—steps", "1", names=("—steps",)),
        plain("train-with-capitals", "train", *data, "--Steps", "1", names=("--Steps", "--steps")),
        plain("compare-alone", "compare", names=("--data",)),
        plain("compare-without-out", "compare", *data, "--steps", "1", names=("--out",)),
        plain(
            "compare-with-a-mistyped-out",
            "compare",
            *data,
            "--steps=1",
            "--ouput=x",
            names=("--ouput", "--out"),
        ),
        train("unknown-option", "--no-such-option", names=("--no-such-option",)),
        train("unknown-option-with-a-value", "--no-such-option=5", names=("--no-such-option",)),
        train("option-of-newlines", "--a\nb", names=("--a\\nb",)),
        train("option-of-escapes", "--\x1b[31m", names=("--\\x1b[31m",)),
        train("option-that-is-no-utf8", b"--\xff", names=("--\\xff",)),
        train("mistyped-option-with-a-near-one", "--batchsize=3", names=("--batchsize", "--batch")),
        train("underscores", "--eval_every=3", names=("--eval_every", "--eval-every")),
        train("option-of-compare", "--formats=native", names=("--formats", "--format")),
        train("short-option", "-b", "3", names=("-b",)),
        train("word-left-over", "more", names=("more",)),
        train("words-behind-two-dashes", "--", "more", names=("more",)),
        train("path-left-over", "text2.txt", names=("text2.txt",)),
        compare("option-of-train", "--optimizer=sgd", names=("--optimizer", "--optimizers")),
        compare("format-of-train", "--format=native", names=("--format", "--formats")),
        compare("resume", "--resume", names=("--resume",)),
        compare("checkpoint-every", "--checkpoint-every=1", names=("--checkpoint-every",)),
        compare("word-left-over", "more", names=("more",)),
    ]


def benches() -> list[Case]:
    cases = [
        bench(f"{option[2:]}-of-{value or 'nothing'}", f"{option}={value}", names=(option,))
        for option, values in {
            "--threads": ("0", "-1", "1025", "abc", "1.5", "", "1,,2", "99999999999999999999"),
            "--parameters": ("0", "-1", "16385", "abc", "1e3", "", "18446744073709551616"),
            "--rounds": ("0", "-1", "1001", "abc", "2.5", "", "99999999999999999999"),
        }.items()
        for value in values
    ]
    cases += [
        bench(f"{option[2:]}-of-{kind}", f"{option}={value}", names=(name,))
        for option in ("--optimizer", "--format", "--backend")
        for kind, value, name in (
            ("an-unknown-name", "sse9", "sse9"),
            ("nothing", "", option[2:]),
            ("capitals", "AVX2", "AVX2"),
            ("a-newline", "a\nb", "a\\nb"),
            ("one-unknown-among-others", "automatic,adamw,native,x9", option[2:]),
        )
    ]
    return [
        *cases,
        bench("memory-lacks", "--parameters=16384", names=("memory",)),
        bench("option-of-train", "--lr=1", names=("--lr",)),
        bench("mistyped-option", "--round=1", names=("--round", "--rounds")),
        bench("flag-with-a-word", "--quick=maybe", names=("--quick",)),
        bench("word-left-over", "more", names=("more",)),
    ]


CASES = [*integers(), *reals(), *choices(), *products(), *excluded(), *words(), *benches()]
