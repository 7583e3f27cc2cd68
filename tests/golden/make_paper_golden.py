"""Writes paper.safetensors: what the authors' package (flashoptim 0.1.4) computes in its own number format.

README.md states the layout. Only the inputs are made here, never a result: those are the package's.
"""

import argparse
import dataclasses
import json
import sys
import tempfile
import warnings
from pathlib import Path

# Takes effect on the packages imported after it.
import triton_on_cpu  # noqa: F401

# isort: split
import flashoptim
import flashoptim.optimizers as package
import numpy as np
import torch
from golden_file import Tensor, write

OUTPUT = Path(__file__).with_name("paper.safetensors")
GROUP = 32
NUMEL = 6 * GROUP + 11  # the last group is short
EXTREME_NUMEL = 4 * GROUP + 5
GRADIENTS = 10  # step t takes gradient (t - 1) % GRADIENTS
STEPS = (1, 10, 100)
EXTREME_STEPS = (1, 2, 3)

TORCH_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
FILE_TYPES = {
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float32: "F32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
}
CORRECTION_TYPES = {24: torch.int8, 32: torch.int16}


@dataclasses.dataclass(frozen=True)
class Case:
    """One optimizer over one tensor; becomes an entry of `cases` in the file's metadata."""

    name: str
    rule: str  # sgd, sgdw, adam, adamw, lion
    lr: float
    weight_dtype: str = "bf16"  # bf16, fp16, fp32
    master_weight_bits: int | None = 24
    quantize: bool = True
    initial_lr: float | None = None  # None: the same as lr
    betas: tuple[float, float] | None = None
    eps: float | None = None
    weight_decay: float = 0.0
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    decoupled: bool = False
    decouple_lr: bool = False
    inputs: str = "inputs"
    steps: tuple[int, ...] = STEPS

    def described(self) -> dict[str, object]:
        numel = EXTREME_NUMEL if self.inputs == "extreme-inputs" else NUMEL
        return {**dataclasses.asdict(self), "initial_lr": self.initial_lr or self.lr, "numel": numel}


def file_tensor(tensor: torch.Tensor) -> Tensor:
    raw = tensor.detach().contiguous()
    if raw.dtype == torch.bfloat16:
        raw = raw.view(torch.uint16)
    return Tensor(FILE_TYPES[tensor.dtype], raw.numpy().copy())


# ------------------------------------------------------------------------------------------------------ cases


def rules() -> list[Case]:
    """The optimizers, each once, without a weight format.

    The decay of sgdw, sgdw-plain and adamw-decouple-lr is chosen so that 1 - decay differs in double and in
    fp32.
    """
    sgd = Case("sgd", "sgd", lr=1e-2)
    momentum = dataclasses.replace(sgd, name="sgd-momentum", momentum=0.9)
    sgdw = dataclasses.replace(momentum, name="sgdw", rule="sgdw", weight_decay=2.03, decoupled=True)
    adam = Case("adam", "adam", lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2)
    adamw = dataclasses.replace(adam, name="adamw", rule="adamw", decoupled=True)
    lion = Case("lion", "lion", lr=1e-4, betas=(0.9, 0.99), weight_decay=1e-1, decoupled=True)
    return [
        sgd,
        momentum,
        dataclasses.replace(momentum, name="sgd-dampening-l2", dampening=0.1, weight_decay=1e-2),
        dataclasses.replace(momentum, name="sgd-nesterov", nesterov=True),
        sgdw,
        adam,
        adamw,
        dataclasses.replace(
            adamw, name="adamw-decouple-lr", lr=3e-4, initial_lr=1e-3, weight_decay=0.0188, decouple_lr=True
        ),
        lion,
    ]


def cases() -> list[Case]:
    by_name = {case.name: case for case in rules()}
    result = [variant(case, "bf16", bits) for case in rules() for bits in (24, 32)]
    # The eager path of SGD without momentum, with both kinds of decay.
    plain = dataclasses.replace(by_name["sgd"], weight_decay=1e-2)
    result.append(variant(dataclasses.replace(plain, name="sgd-l2"), "bf16", 24))
    decayed = dataclasses.replace(
        plain, name="sgdw-plain", rule="sgdw", decoupled=True, lr=0.07, initial_lr=0.1, decouple_lr=True
    )
    result.append(variant(dataclasses.replace(decayed, weight_decay=0.0058), "bf16", 24))
    # 1 - 0.9 differs in double and in fp32.
    heavy = dataclasses.replace(by_name["sgd-momentum"], name="sgd-dampening-0.9", dampening=0.9)
    result.append(variant(heavy, "bf16", 24))
    for name in ("sgd-momentum", "adamw", "lion"):
        case = by_name[name]
        result.append(variant(case, "bf16", None))
        result += [variant(case, "fp16", bits) for bits in (24, 32, None)]
        result.append(variant(case, "fp32", None))
        for dtype, bits in (("bf16", 24), ("fp16", 32), ("fp32", None)):
            result.append(variant(case, dtype, bits, quantize=False))
        result.append(extreme(variant(case, "bf16", 24)))
    result.append(extreme(variant(by_name["adamw"], "fp16", 24)))
    return result


def variant(case: Case, weight_dtype: str, bits: int | None, quantize: bool = True) -> Case:
    name = f"{case.name}-{weight_dtype}-{bits or 'none'}" + ("" if quantize else "-unquantized")
    return dataclasses.replace(
        case, name=name, weight_dtype=weight_dtype, master_weight_bits=bits, quantize=quantize
    )


def extreme(case: Case) -> Case:
    name = f"extreme-{case.name}"
    return dataclasses.replace(case, name=name, inputs="extreme-inputs", steps=EXTREME_STEPS)


# ----------------------------------------------------------------------------------------------------- inputs


def special_weights(dtype: str) -> list[float]:
    """Zeros, the subnormal range and its edge, powers of two and their neighbours, large and tiny values."""
    info = torch.finfo(TORCH_TYPES[dtype])
    smallest = info.tiny * info.eps
    positive = [smallest, 77 * smallest, info.tiny - smallest, info.tiny]
    positive += [1.0, 1.0 - info.eps / 2, 1.0 + info.eps, 2.0, 0.5, 2.0**-14, 2.0**10, 1e4, 1e-5, 3e-7]
    if dtype != "fp16":
        positive += [1e-20, 1e-37, 2.0**-100]
    return [0.0, -0.0] + [sign * value for value in positive for sign in (1.0, -1.0)]


def starting_weights(dtype: str, numel: int, rng: np.random.Generator) -> torch.Tensor:
    """fp32 values: noise of an ordinary layer, with the special values strewn over all groups."""
    weights = (rng.standard_normal(numel) * 0.05).astype(np.float32)
    special = special_weights(dtype)
    places = np.linspace(0, numel - 1, len(special)).astype(int)
    weights[places] = np.array(special, dtype=np.float64).astype(np.float32)
    return torch.from_numpy(weights)


def gradient(dtype: str, step: int, rng: np.random.Generator) -> torch.Tensor:
    """Per group: even, many decades, tiny scales, one large value, drift, zeros; a short last group."""
    noise = rng.standard_normal(NUMEL)
    decades = rng.uniform(-8, 0, NUMEL)
    group = [slice(first, first + GROUP) for first in range(0, NUMEL, GROUP)]
    values = noise * 1e-3
    values[group[1]] = noise[group[1]] * 10.0 ** decades[group[1]]
    values[group[2]] = noise[group[2]] * 10.0 ** (decades[group[2]] * 0.75 - 6)
    if step % 2:
        values[group[3].start + 7] = (100.0 if dtype == "fp16" else 3000.0) * np.sign(noise[0])
    values[group[4]] = np.abs(noise[group[4]]) * 1e-2
    values[group[5]][:16] = 0.0
    values[group[5]][16:] *= rng.integers(0, 2, 16)
    values[group[5]][20] = 1e-12
    values[group[6]] = noise[group[6]] * 10.0 ** (decades[group[6]] * 0.75 + 2)
    return torch.from_numpy(values).to(TORCH_TYPES[dtype])


def extreme_gradient(dtype: str, step: int, rng: np.random.Generator) -> torch.Tensor:
    """An ordinary stream whose first gradient has one value beyond the format in each group."""
    values = rng.standard_normal(EXTREME_NUMEL) * 1e-3
    if step == 0:
        beyond = [6e4, -6e4] if dtype == "fp16" else [1e5, -1e6]
        for group, value in enumerate([*beyond, np.nan, np.inf, -np.inf]):
            values[group * GROUP + 3] = value
    return torch.from_numpy(values).to(TORCH_TYPES[dtype])


def inputs() -> dict[str, torch.Tensor]:
    result = {}
    for place, steps, numel, make in (
        ("inputs", GRADIENTS, NUMEL, gradient),
        ("extreme-inputs", len(EXTREME_STEPS), EXTREME_NUMEL, extreme_gradient),
    ):
        for dtype in ("bf16", "fp16", "fp32") if place == "inputs" else ("bf16", "fp16"):
            rng = np.random.default_rng([len(place), len(dtype), ord(dtype[0])])
            wide = starting_weights(dtype, numel, rng)
            narrow = wide.to(TORCH_TYPES[dtype])
            result[f"{place}/{dtype}/weights"] = narrow
            for bits in (24, 32) if dtype != "fp32" else ():
                corrections = flashoptim.compute_ecc_bits(wide, narrow, bits // 8)
                result[f"{place}/{dtype}/corrections-{bits}"] = corrections
            gradients = [make(dtype, step, rng) for step in range(steps)]
            result[f"{place}/{dtype}/gradients"] = torch.stack(gradients)
    return result


# ------------------------------------------------------------------------------------------------------ steps


def optimizer(case: Case, weights: torch.nn.Parameter) -> flashoptim.FlashOptimizer:
    arguments: dict[str, object] = {
        "lr": case.initial_lr or case.lr,
        "weight_decay": case.weight_decay,
        "quantize": case.quantize,
        "master_weight_bits": case.master_weight_bits,
    }
    if case.betas is not None:
        arguments["betas"] = case.betas
    if case.eps is not None:
        arguments["eps"] = case.eps
    if case.rule in ("sgd", "sgdw"):
        arguments |= {"momentum": case.momentum, "dampening": case.dampening, "nesterov": case.nesterov}
    if case.decouple_lr:
        arguments["decouple_lr"] = True
    kinds = {
        "sgd": flashoptim.FlashSGD,
        "sgdw": flashoptim.FlashSGDW,
        "adam": flashoptim.FlashAdam,
        "adamw": flashoptim.FlashAdamW,
        "lion": flashoptim.FlashLion,
    }
    result = kinds[case.rule]([weights], **arguments)
    result.param_groups[0]["lr"] = case.lr
    return result


def snapshot(case: Case, weights: torch.nn.Parameter, state: dict[str, object]) -> dict[str, torch.Tensor]:
    result = {"weights": weights.detach().clone()}
    if case.master_weight_bits is not None:
        result["corrections"] = state["error_bits"].clone()
    for letter, keys in (("m", ("exp_avg", "momentum_buffer")), ("v", ("exp_avg_sq",))):
        for moment in [state[key] for key in keys if key in state]:
            if moment.is_quantized():
                result[f"{letter}_codes"] = moment.quantized.clone()
                result[f"{letter}_scales"] = moment.scales.clone()
            else:
                result[letter] = moment.data.clone()
    return result


def run(case: Case, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    place = f"{case.inputs}/{case.weight_dtype}"
    weights = torch.nn.Parameter(given[f"{place}/weights"].clone())
    gradients = given[f"{place}/gradients"]
    stepper = optimizer(case, weights)
    if case.master_weight_bits is not None:
        stepper.state[weights]["error_bits"] = given[f"{place}/corrections-{case.master_weight_bits}"].clone()
    kept = []
    for step in range(1, max(case.steps) + 1):
        weights.grad = gradients[(step - 1) % len(gradients)].clone()
        stepper.step()
        if step in case.steps:
            kept.append(snapshot(case, weights, stepper.state[weights]))
    result = {key: torch.stack([one[key] for one in kept]) for key in kept[0]}
    if case.inputs == "inputs":
        for key, values in result.items():
            if not torch.isfinite(values.float()).all():
                sys.exit(f"{case.name}: {key} is not finite; choose tamer inputs")
    return {f"{case.name}/{key}": values for key, values in result.items()}


# ------------------------------------------------------------------------------------------------------ codec


def correction_vectors(dtype: str) -> dict[str, torch.Tensor]:
    narrow_type = TORCH_TYPES[dtype]
    info = torch.finfo(narrow_type)
    rng = np.random.default_rng(ord(dtype[0]))
    exponents = rng.uniform(np.log2(info.tiny) - 8, np.log2(info.max) - 1, 160)
    values = list(rng.choice([-1.0, 1.0], 160) * 2.0**exponents)
    for value in [*special_weights(dtype), info.max]:
        ulp = max(2.0 ** np.floor(np.log2(max(abs(value), info.tiny))) * info.eps, info.tiny * info.eps)
        values += [value, value + ulp / 2, value - ulp / 3]
    values += [info.max * 1.001, -info.max * 1.003, np.inf, -np.inf, np.nan]
    wide = torch.from_numpy(np.array(values, dtype=np.float64).astype(np.float32))
    narrow = wide.to(narrow_type)
    # A weight that someone else wrote need not be the nearest one: the correction saturates.
    stray = torch.from_numpy(np.linspace(0.9, 1.1, 64)).to(narrow_type)
    wide = torch.cat([wide, torch.from_numpy(np.linspace(1.095, 0.905, 64).astype(np.float32))])
    narrow = torch.cat([narrow, stray])
    result = {f"codec/{dtype}/fp32": wide, f"codec/{dtype}/weights": narrow}
    special = special_weights(dtype)
    for bits, kind in CORRECTION_TYPES.items():
        corrections = flashoptim.compute_ecc_bits(wide, narrow, bits // 8)
        result[f"codec/{dtype}/corrections-{bits}"] = corrections
        result[f"codec/{dtype}/decoded-{bits}"] = flashoptim.reconstruct_fp32_param(narrow, corrections)
        limit = torch.iinfo(kind)
        some = [limit.min, -limit.max, -limit.max + 1, -limit.max // 3, -1, 0, 1, limit.max // 2, limit.max]
        left = torch.tensor(special).to(narrow_type).repeat_interleave(len(some))
        right = torch.tensor(some, dtype=kind).repeat(len(special))
        result[f"codec/{dtype}/decode-{bits}/weights"] = left
        result[f"codec/{dtype}/decode-{bits}/corrections"] = right
        result[f"codec/{dtype}/decode-{bits}/decoded"] = flashoptim.reconstruct_fp32_param(left, right)
    return result


def moment_vectors(letter: str) -> dict[str, torch.Tensor]:
    layouts = {
        "m": {"signed": True, "softsign": True},
        "v": {"signed": False, "sqrt": True, "softsign": False},
    }
    layout = layouts[letter]
    rng = np.random.default_rng(ord(letter))
    groups = []
    for center in (0.0, -3.0, 3.0, -7.0, -11.0, -14.0):  # decades; the last is below the least divisor
        groups.append(rng.standard_normal(GROUP) * 10.0**center)
        groups.append(rng.standard_normal(GROUP) * 10.0 ** (center + rng.uniform(-6, 0, GROUP)))
    groups.append(np.zeros(GROUP))
    groups.append(np.full(GROUP, 2.0**-24))  # the smallest fp16
    groups.append(np.linspace(-1, 1, GROUP))
    groups.append(np.concatenate([[6.5e4], rng.standard_normal(GROUP - 1)]))
    for beyond in (65519.0, 65520.0, 1e6, np.inf, np.nan):  # from 65520 on the fp16 scale is infinite
        groups.append(np.concatenate([[beyond], rng.standard_normal(GROUP - 1)]))
    groups.append(np.full(GROUP, np.nan))
    groups.append(rng.standard_normal(11))  # a short group
    values = np.concatenate(groups)
    if letter == "v":
        values = values * values
    moments = torch.from_numpy(values.astype(np.float32))
    codes, scales = package.quantize(moments, **layout)
    result = {
        f"codec/{letter}/values": moments,
        f"codec/{letter}/codes": codes,
        f"codec/{letter}/scales": scales,
        f"codec/{letter}/decoded": package.dequantize(codes, scales, **layout),
    }
    every = torch.arange(256, dtype=torch.int16).to(codes.dtype)
    some = torch.tensor([0.0, 2.0**-24, 1e-5, 0.333, 1.0, 3.5, 65504.0, np.inf], dtype=torch.float16)
    every, some = every.repeat(8), some.repeat_interleave(256 // GROUP)
    result[f"codec/{letter}/decode/codes"] = every
    result[f"codec/{letter}/decode/scales"] = some
    result[f"codec/{letter}/decode/decoded"] = package.dequantize(every, some, **layout)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=OUTPUT, help="file to write (default: %(default)s)")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the file would change")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")

    tensors = inputs()
    given = dict(tensors)
    every_case = cases()
    for case in every_case:
        tensors |= run(case, given)
    for dtype in ("bf16", "fp16"):
        tensors |= correction_vectors(dtype)
    for letter in ("m", "v"):
        tensors |= moment_vectors(letter)

    description = {"package": "flashoptim 0.1.4", "cases": [case.described() for case in every_case]}
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder) / "paper.safetensors"
        stored = {name: file_tensor(values) for name, values in tensors.items()}
        write(fresh, {"golden": json.dumps(description)}, stored)
        content = fresh.read_bytes()
    if not arguments.check:
        arguments.output.write_bytes(content)
        print(f"{arguments.output}: {len(every_case)} cases, {len(tensors)} tensors, {len(content)} bytes")
    elif arguments.output.read_bytes() != content:
        sys.exit(f"{arguments.output} is not what the package computes: regenerate it")


if __name__ == "__main__":
    main()
