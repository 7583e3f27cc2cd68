"""Counts the machine instructions per parameter of a step kernel: compiles it, disassembles it and walks the
loop over a chunk.

The figure is the longest way through the loop that leaves out what hardly ever runs: calls (divisions and
roots out of range, the one-by-one path), accesses of single bytes and of single 16-bit elements other than
the scales (rows that are not whole), fp16 gradients and the division that finds another row. A thread steps
eight parameters in each turn.

Needs nvcc and nvdisasm: `pip install nvidia-cuda-nvdisasm`, then `--nvdisasm PATH` unless it is in PATH.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections import Counter
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PARAMETERS = 8  # of one thread in one turn (src/cuda/tensor_list.h, kElements)
KERNELS = {
    "native AdamW": "AdamRule, NativeMoments, Bfloat16Weight24",
    "native Lion": "LionRule, NativeMoments, Bfloat16Weight24",
    "native SGD with momentum": "SgdRule<true>, NativeMoments, Bfloat16Weight24",
    "paper AdamW": "PaperAdamRule, PaperMoments, PaperWeight<PaperBfloat16, std::int8_t>",
}
# Where any of these is, the loop hardly ever goes.
RARE = re.compile(
    r"CALL\.\S+ `\(\$|STL|LDL|\b(LDG?|STG?)\.E(\.EF)?\.[US]8|ATOM|RED|I2F\.U32\.RP|EXIT|BPT|WARPSYNC\.COLL"
)
# fp16 gradients are scaled by 2^112, eight at a time; scales may be fp16 too.
HALF = "5.19229685853"
# Where a run of eight passes the end of the dither's period: only in rows that are not whole.
PERIOD = re.compile(r"ISETP\.G[TE]\.U32.*, (0x1ff|-?0x200),")
# The check of a root's operand: where a kernel has roots without it too, those with it are the rare ones.
GUARDED_ROOT = re.compile(r"0xf3000000|-0xd000000")
INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;")
LABEL = re.compile(r"^(\.L_x?_?\d+):")
BRANCH = re.compile(r"^(@!?U?P\d\s+)?BRA\b(.*?)`\((\.L_x?_?\d+)\)")


def disassemble(kernel: str, arch: str, nvcc: str, nvdisasm: str) -> list[str]:
    """The lines of the kernel's disassembly."""
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder, "kernel.cu"), Path(folder, "kernel.cubin")
        source.write_text(
            '#include "cuda/kernels.cuh"\nnamespace flashoptim::cuda {\n'
            f"template cudaError_t launch_step<{kernel}>(const Launch&, void*);\n}}\n"
        )
        command: list[str | Path] = [
            nvcc,
            "-std=c++20",
            "--fmad=false",
            f"-arch=sm_{arch}",
            "-cubin",
            "-o",
            cubin,
            source,
        ]
        command += [f"-I{ROOT / 'include'}", f"-I{ROOT / 'src'}"]
        subprocess.run(command, check=True)
        found = subprocess.run([nvdisasm, "-c", cubin], check=True, capture_output=True, text=True)
    lines = found.stdout.splitlines()
    begin = next(n for n, line in enumerate(lines) if line.startswith(".text.") and "step_kernel" in line)
    return lines[begin:]


def blocks_of(lines: list[str]) -> tuple[list[list[str]], dict[str, int]]:
    """Runs of instructions without a label or behind a branch, and the number of the block at each label."""
    blocks: list[list[str]] = [[]]
    labels: dict[str, int] = {}
    for line in lines[1:]:
        if line.startswith((".text.", "//-----")):
            break
        if label := LABEL.match(line):
            if blocks[-1]:
                blocks.append([])
            labels[label[1]] = len(blocks) - 1
        elif instruction := INSTRUCTION.match(line):
            blocks[-1].append(instruction[2])
            if BRANCH.match(instruction[2]):
                blocks.append([])
    return blocks, labels


def hot_loop(blocks: list[list[str]], labels: dict[str, int]) -> list[str]:
    """The instructions of the longest way through the largest loop that has no rare block on it."""
    text = "\n".join(i for block in blocks for i in block)
    has_unguarded = text.count("MUFU.RSQ") >= len(GUARDED_ROOT.findall(text)) + PARAMETERS

    def is_rare(n: int) -> bool:
        if sum(bool(PERIOD.search(i)) for i in blocks[n]) > 1 or sum(HALF in i for i in blocks[n]) > 2:
            return True
        return any(RARE.search(i) or (has_unguarded and GUARDED_ROOT.search(i)) for i in blocks[n])

    def targets(n: int) -> list[int]:
        last = blocks[n][-1] if blocks[n] else ""
        branch = BRANCH.match(last)
        if not branch:
            return [n + 1]
        jump = labels[branch[3]]
        # With a predicate before it or among its operands, or where threads have diverged.
        return [jump, n + 1] if branch[1] or branch[2].strip() else [jump]

    back = [
        (n - target, target, n)
        for n in range(len(blocks))
        for target in targets(n)
        if target < n and not is_rare(n)
    ]
    _, head, tail = max(back)

    @cache
    def longest(n: int) -> tuple[int, tuple[int, ...]] | None:
        if n >= len(blocks) or is_rare(n):
            return None
        if n == tail:
            return len(blocks[n]), (n,)
        ways = [way for target in targets(n) if target > n and (way := longest(target))]
        if not ways:
            return None
        length, path = max(ways)
        return length + len(blocks[n]), (n, *path)

    sys.setrecursionlimit(10_000)
    way = longest(head)
    if way is None:
        raise SystemExit("no way through the loop leaves out all rare blocks: look at the disassembly")
    return [i for n in way[1] for i in blocks[n]]


def operation(instruction: str) -> str:
    """Its name without predicate and modifiers."""
    return re.sub(r"^@!?U?P\d\s+", "", instruction).split()[0].split(".")[0]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", default="90", help="compute capability, as 80 or 90 (default: 90)")
    parser.add_argument("--nvcc", default="nvcc")
    parser.add_argument("--nvdisasm", default="nvdisasm")
    parser.add_argument("--kernel", choices=KERNELS, help="one of them alone, with its instructions")
    arguments = parser.parse_args()
    for name, kernel in KERNELS.items():
        if arguments.kernel not in (None, name):
            continue
        lines = disassemble(kernel, arguments.arch, arguments.nvcc, arguments.nvdisasm)
        loop = hot_loop(*blocks_of(lines))
        print(f"{name}, sm_{arguments.arch}: {len(loop) / PARAMETERS:.1f} instructions per parameter")
        if arguments.kernel:
            for count in Counter(map(operation, loop)).most_common():
                print(f"{count[1] / PARAMETERS:6.2f}  {count[0]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
