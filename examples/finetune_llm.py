"""Finetunes a Hugging Face causal language model with FlashAdamW or torch's AdamW, and reports its memory.

    python examples/finetune_llm.py    # a tiny random Llama, on this file's own bytes
    python examples/finetune_llm.py --model FOLDER --text FILE --optimizer torch
    torchrun --nproc-per-node 2 examples/finetune_llm.py --gradient-release     # FSDP2

Needs torch, transformers and tqdm. Nothing is downloaded: --model takes a local folder.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import sys
from pathlib import Path
from typing import NoReturn

import flashoptim_cpp as flash
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM


class BadInput(Exception):
    """Bad input that the user can correct."""


class Parser(argparse.ArgumentParser):
    """A parser that reports an error in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"finetune_llm: {message}\n")


def parse() -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", type=Path, help="folder of a saved model and tokenizer (default: a tiny random Llama)"
    )
    parser.add_argument(
        "--text", type=Path, default=Path(__file__), help="text to train on (default: this file)"
    )
    parser.add_argument("--optimizer", choices=("ours", "torch"), default="ours")
    parser.add_argument(
        "--gradient-release", action="store_true", help="step inside backward, free each gradient at once"
    )
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=8, help="sequences per process and step")
    parser.add_argument("--sequence", type=int, default=128, help="tokens per sequence")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for name in ("steps", "batch", "sequence", "lr"):
        if not getattr(arguments, name) > 0:
            parser.error(f"--{name} must be greater than 0")
    if arguments.gradient_release and arguments.optimizer == "torch":
        parser.error("--gradient-release needs --optimizer ours")
    return arguments


def load(arguments: argparse.Namespace) -> tuple[torch.nn.Module, torch.Tensor]:
    """The model in fp32 and the text as token numbers."""
    try:
        text = arguments.text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"--text {arguments.text}: {error}") from error
    torch.manual_seed(arguments.seed)
    if arguments.model is None:
        size = {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 2}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 4}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=256, **size, **heads))
        tokens = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).long()
    else:
        if not (arguments.model / "config.json").is_file():
            raise BadInput(
                f"--model {arguments.model}: no config.json there; save a model with save_pretrained"
            )
        try:
            model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(arguments.model)
        except (OSError, ValueError) as error:
            raise BadInput(f"--model {arguments.model}: {str(error).splitlines()[0]}") from error
        tokens = tokenizer(text, return_tensors="pt").input_ids[0]
    if len(tokens) <= arguments.sequence:
        raise BadInput(
            f"--text {arguments.text}: {len(tokens)} tokens are too few for --sequence {arguments.sequence}"
        )
    return model, tokens


def cast(model: torch.nn.Module) -> None:
    """Casts the weights to bfloat16. The optimizer keeps the other 8 bits of its 24-bit master weights.

    Rotary frequencies stay fp32 (if they are saved, they must be named), and so do the tensors that
    transformers never loads in bfloat16.
    """
    strict = set(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    buffers = [name for name, _ in model.named_buffers() if {"inv_freq", *strict} & set(name.split("."))]
    layers: list[str | torch.nn.Module] = [
        m for n, m in model.named_modules() if n.rpartition(".")[2] in strict
    ]
    flash.cast_model(model, full_precision_recast_layers=layers, keep_buffers=buffers)


def bytes_of(tensors: list[torch.Tensor]) -> int:
    """The bytes of the tensors in this process."""
    parts = [t.to_local() if hasattr(t, "to_local") else t for t in tensors]
    return sum(t.numel() * t.element_size() for t in parts)


def memory(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """The bytes of weights, gradients and the optimizer's state at this moment."""
    if isinstance(optimizer, flash.FlashOptimizer):
        report = optimizer.memory_report()
        kinds = ("weights", "corrections", "moments", "scales", "gradients")
        return {kind: int(report[kind]) for kind in kinds}
    state = [v for s in optimizer.state.values() for v in s.values() if torch.is_tensor(v) and v.dim()]
    return {
        "weights": bytes_of(list(model.parameters())),
        "moments": bytes_of(state),
        "gradients": bytes_of([p.grad for p in model.parameters() if p.grad is not None]),
    }


def print_table(used: dict[str, int], parameters: int, peak: int) -> None:
    print(f"\n{'':24}{'MiB':>10}{'bytes per parameter':>22}")
    for kind, size in [*used.items(), ("total", sum(used.values()))]:
        print(f"{kind:24}{size / 2**20:10.2f}{size / parameters:22.3f}")
    print(f"{'peak of the process':24}{peak / 2**20:10.2f}")


def train(arguments: argparse.Namespace, rank: int, ranks: int) -> None:
    device = torch.device(f"cuda:{rank % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu")
    model, tokens = load(arguments)
    model = model.to(device)
    if arguments.optimizer == "ours":
        cast(model)
    if ranks > 1:
        for layers in (m for m in model.modules() if isinstance(m, torch.nn.ModuleList)):
            for layer in layers:
                fully_shard(layer)
        fully_shard(model)
    parameters = sum((p.to_local() if hasattr(p, "to_local") else p).numel() for p in model.parameters())

    named = list(model.named_parameters())
    optimizer: torch.optim.Optimizer
    if arguments.optimizer == "ours":
        optimizer = flash.FlashAdamW(named, lr=arguments.lr)
        if arguments.gradient_release:
            flash.enable_gradient_release(model, optimizer)
    else:
        optimizer = torch.optim.AdamW(named, lr=arguments.lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / arguments.steps)
    narrow = (
        torch.autocast(device.type, torch.bfloat16)
        if arguments.optimizer == "torch"
        else contextlib.nullcontext()
    )

    draw = torch.Generator().manual_seed(arguments.seed * ranks + rank)
    used: dict[str, int] = {}
    with tqdm(range(arguments.steps), disable=rank > 0, unit="step") as progress:
        for _ in progress:
            starts = torch.randint(len(tokens) - arguments.sequence, (arguments.batch,), generator=draw)
            batch = torch.stack([tokens[s : s + arguments.sequence] for s in starts]).to(device)
            with narrow:
                loss = model(input_ids=batch, labels=batch).loss
            loss.backward()
            if not arguments.gradient_release:
                optimizer.step()
            used = memory(model, optimizer)  # now the state exists, and so do unreleased gradients
            if not arguments.gradient_release:
                optimizer.zero_grad()
            schedule.step()
            progress.set_postfix(loss=f"{loss.item():.4f}")
    if rank == 0:
        print(f"loss {loss.item():.4f} after {arguments.steps} steps")
        peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else peak_of_process()
        print_table(used, parameters, peak)


def peak_of_process() -> int:
    """Peak resident memory in bytes; Linux counts it in KiB, macOS in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> int:
    arguments = parse()
    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if ranks > 1:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        train(arguments, rank, ranks)
    except BadInput as error:
        if rank == 0:
            print(f"finetune_llm: {error}", file=sys.stderr)
        return 2
    finally:
        if ranks > 1:
            dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # gloo's threads may abort a process that exits normally
