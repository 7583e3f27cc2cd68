"""Times the optimizer step on a GPU beside its peers, in turns. Writes JSON and a Markdown table.

Ours is called through bench/cuda_bench_c.cpp and, in a row of its own, from PyTorch. The peers are PyTorch's
fused AdamW on fp32 weights, the authors' package `flashoptim` and the 8-bit AdamW of bitsandbytes, if they
can be imported and fit into memory. Every figure is a median over rounds; a round measures all contestants
and the bandwidth of a copy one after another, by CUDA events. Each parameter list has its own process. If a
contestant ends the process, it is started again without it. Results are written after each list. Nothing here
is a test.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from cuda_contestants import DeviceLost, cases, contestants, measure

ROOT = Path(__file__).resolve().parent.parent


def table(result: dict[str, Any]) -> list[str]:
    """One case as Markdown."""
    native = next((row.get("ms") for row in result["rows"] if row["name"] == "ours native"), None)
    lines = [
        f"### {result['title']}: {result['parameters']:,} parameters",
        "",
        f"Copy bandwidth {result['copy_bandwidth'] * 1e-9:,.0f} GB/s.",
        "",
        "| | ms | GB/s | of copy bandwidth | times as long as ours native |",
        "|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        if "failure" in row:
            lines.append(f"| {row['name']} | {row['failure']} | | | |")
            continue
        over = f"{row['ms'] / native:.2f}" if native else ""
        rate = f"{row['bytes_per_second'] * 1e-9:,.0f}" if "share" in row else "in cache"
        share = f"{row['share'] * 100:.0f} %" if "share" in row else ""
        lines.append(f"| {row['name']} | {row['ms']:.3f} | {rate} | {share} | {over} |")
    return [*lines, ""]


def version_of(package: str) -> str:
    """The installed version; empty if it cannot be imported."""
    try:
        module = importlib.import_module(package)
    except Exception:  # packages that need a GPU fail in many ways
        return ""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return str(getattr(module, "__version__", "here"))


def write(out: Path, versions: dict[str, str], results: list[dict[str, Any]], left_out: list[str]) -> None:
    """JSON and Markdown of what has been measured so far, the smallest list first."""
    results = sorted(results, key=lambda result: int(result["parameters"]))
    gpu = results[0]["gpu"]
    document = {
        "date": time.strftime("%Y-%m-%d"),
        "gpu": gpu,
        "versions": versions,
        "results": results,
        "left_out": left_out,
    }
    name = f"cuda-{gpu.replace(' ', '-').lower()}"
    packages = ", ".join(f"{package} {version or '(missing)'}" for package, version in versions.items())
    text = [f"{gpu}, {packages}, {document['date']}.", "", *(line for r in results for line in table(r))]
    if left_out:
        text += [f"Left out: {'; '.join(left_out)}.", ""]
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    (out / f"{name}.md").write_text("\n".join(text))


def run_case(command: list[str], title: str, seconds: float) -> dict[str, Any] | str:
    """The result of a case from a process of its own, or why there is none. A contestant that ends the
    process is left out of the next one; its row says so."""
    ended: dict[str, str] = {}
    deadline = time.monotonic() + seconds
    while True:
        with tempfile.TemporaryDirectory() as folder:
            names = [part for name in ended for part in ("--without", name)]
            child = [*command, "--case", title, "--folder", folder, *names]
            try:
                status = subprocess.run(child, timeout=max(1.0, deadline - time.monotonic())).returncode
            except subprocess.TimeoutExpired:
                return f"{title}: not done in {seconds:.0f} s"
            if status == 0:
                result: dict[str, Any] = json.loads(Path(folder, "result.json").read_text())
                result["rows"] += [{"name": name, "failure": why} for name, why in ended.items()]
                return result
            turn, why = Path(folder, "turn"), Path(folder, "why")
            name = turn.read_text() if turn.exists() else ""
            said = why.read_text() if why.exists() else f"ended the process with status {status}"
        if not name or name in ended:
            return f"{title}: {said}"
        ended[name] = said


def be_child(arguments: argparse.Namespace) -> int:
    """Times one case, for run_case."""
    folder: Path = arguments.folder
    who = [c for c in contestants(arguments.library) if c.name not in arguments.without]
    who = [c for c in who if version_of(c.package)]

    def begin(name: str) -> None:
        Path(folder, "turn").write_text(name)

    try:
        result = measure(arguments.case, cases()[arguments.case], who, arguments.rounds, begin)
    except DeviceLost as error:
        Path(folder, "why").write_text(f"broke the device: {error}")
        return 1
    Path(folder, "result.json").write_text(json.dumps(result))
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--library", type=Path, default=ROOT / "build/cuda/bench/libflashoptim_bench_cuda.so")
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results", help="folder of the results")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=420.0, help="nothing runs longer than that")
    parser.add_argument("--dry-run", action="store_true", help="say what would be timed, and what is missing")
    parser.add_argument("--case", choices=cases(), help="one parameter list alone, into --folder")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--without", action="append", default=[], help="a contestant to leave out")
    arguments = parser.parse_args()
    if arguments.folder:
        return be_child(arguments)
    who = contestants(arguments.library)
    versions = {package: version_of(package) for package in sorted({c.package for c in who})}
    wanted = {title: shapes for title, shapes in cases().items() if arguments.case in (None, title)}
    if arguments.dry_run:
        for package, version in versions.items():
            print(f"{package}: {version or 'cannot be imported'}")
        print(f"{arguments.library}: {'there' if arguments.library.exists() else 'not built'}")
        for title, shapes in wanted.items():
            count = sum(math.prod(shape) for shape in shapes)
            print(f"{title}: {len(shapes)} tensors, {count:,} parameters; {', '.join(c.name for c in who)}")
        return 0
    if not versions["torch"] or not arguments.library.exists():
        sys.exit(f"cuda_compare: torch and {arguments.library} are needed; run scripts/gpu_check.sh")
    import torch

    if not torch.cuda.is_available():
        sys.exit("cuda_compare: torch sees no CUDA device")
    command = [
        sys.executable,
        __file__,
        "--library",
        str(arguments.library),
        "--rounds",
        str(arguments.rounds),
    ]
    command += [part for name in arguments.without for part in ("--without", name)]
    deadline = time.monotonic() + arguments.seconds
    results: list[dict[str, Any]] = []
    left_out: list[str] = []
    for title in wanted:
        left = deadline - time.monotonic()
        found = run_case(command, title, left) if left > 0 else f"{title}: no time was left"
        if isinstance(found, str):
            print(found, flush=True)
            left_out.append(found)
        else:
            results.append(found)
            print("\n".join(table(found)), flush=True)
        if results:
            write(arguments.out, versions, results, left_out)
    return 0 if results else 1


if __name__ == "__main__":
    sys.exit(main())
