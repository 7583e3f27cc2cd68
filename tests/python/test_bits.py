"""The package gives the bits of the core, of the authors' package in `paper`,
and of itself with other threads.

What a user loses if these fail: results that depend on how the package was called.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import c_interface
import flashoptim_cpp as flash
import pytest
import support
import torch
from support import ADAMW, LION, SGD, Rule, Tensor

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))
import golden_file  # noqa: E402

METADATA, STORED = golden_file.read(GOLDEN / "paper.safetensors")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
CLASSES = {
    "sgd": flash.FlashSGD,
    "sgdw": flash.FlashSGDW,
    "adam": flash.FlashAdam,
    "adamw": flash.FlashAdamW,
    "lion": flash.FlashLion,
}


def comparable(case: dict[str, Any]) -> bool:
    """Without quantization the package keeps moments in the weights' dtype, ours are fp32."""
    return case["quantize"] or case["weight_dtype"] == "fp32"


CASES = [case for case in json.loads(METADATA["golden"])["cases"] if comparable(case)]


def stored(name: str) -> Tensor:
    kind, values = STORED[name]
    tensor = torch.from_numpy(values.copy())
    return tensor.view(torch.bfloat16) if kind == "BF16" else tensor


def made(case: dict[str, Any], weights: torch.nn.Parameter) -> Any:
    arguments: dict[str, Any] = {
        "lr": case["initial_lr"],
        "weight_decay": case["weight_decay"],
        "quantize": case["quantize"],
        "master_weight_bits": case["master_weight_bits"],
        "format": "paper",
        "check_gradients": case["inputs"] == "inputs",  # the package has no rule for bad gradients
    }
    if case["rule"].startswith("sgd"):
        arguments |= {key: case[key] for key in ("momentum", "dampening", "nesterov")}
    else:
        arguments["betas"] = tuple(case["betas"])
    if case["eps"] is not None:
        arguments["eps"] = case["eps"]
    if case["decouple_lr"]:
        arguments["decouple_lr"] = True
    optimizer = CLASSES[case["rule"]]([weights], **arguments)
    optimizer.param_groups[0]["lr"] = case["lr"]
    return optimizer


@pytest.mark.filterwarnings("ignore:.*master_weight_bits=None:UserWarning")
@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_paper_has_the_bits_of_the_authors_package(case: dict[str, Any]) -> None:
    place = f"{case['inputs']}/{case['weight_dtype']}"
    weights = torch.nn.Parameter(stored(f"{place}/weights"))
    optimizer = made(case, weights)
    if case["master_weight_bits"] is not None:
        corrections = stored(f"{place}/corrections-{case['master_weight_bits']}")
        start = optimizer.state_dict()
        start["state"] = {0: {"error_bits": corrections, "step": torch.tensor(0)}}
        names = {"sgd": ["momentum_buffer"], "lion": ["exp_avg"]}.get(
            case["rule"].rstrip("w"), ["exp_avg", "exp_avg_sq"]
        )
        if case["rule"] == "adamw":
            names = ["exp_avg", "exp_avg_sq"]
        if case["momentum"] or not case["rule"].startswith("sgd"):
            for name in names:
                start["state"][0][name] = torch.zeros(case["numel"])
        optimizer.load_state_dict(start)
    gradients = stored(f"{place}/gradients")
    for step in range(1, max(case["steps"]) + 1):
        weights.grad = gradients[(step - 1) % len(gradients)].clone()
        optimizer.step()
        if step not in case["steps"]:
            continue
        state = optimizer.state[weights]
        found = {"weights": weights.detach()}
        if case["master_weight_bits"] is not None:
            found["corrections"] = state["error_bits"]
        for letter, keys in (("m", ("exp_avg", "momentum_buffer")), ("v", ("exp_avg_sq",))):
            for moment in [state[key] for key in keys if key in state]:
                if moment.is_quantized():
                    found |= {f"{letter}_codes": moment.quantized, f"{letter}_scales": moment.scales}
                else:
                    found[letter] = moment.materialize()
        for key, value in found.items():
            expected = stored(f"{case['name']}/{key}")[case["steps"].index(step)]
            value = value.reshape(expected.shape)
            if value.is_floating_point():  # a NaN equals any NaN: sign and payload are the processor's
                value, expected = (t.where(~t.isnan(), torch.ones_like(t)) for t in (value, expected))
            assert support.same_bits(value, expected), f"step {step}: {key}"


CORE_CASES = [
    (rule, number_format, dtype, bits)
    for rule in (SGD, ADAMW, LION)
    for number_format in ("native", "paper")
    for dtype, bits in (
        (torch.bfloat16, 24),
        (torch.bfloat16, 32),
        (torch.bfloat16, 16),
        (torch.bfloat16, None),
        (torch.float16, 24),
        (torch.float32, None),
    )
    if not (number_format == "paper" and bits == 16)  # the paper has no dithered weights
]


@pytest.mark.skipif(not c_interface.LIBRARY.exists(), reason=f"{c_interface.LIBRARY} is not built")
@pytest.mark.filterwarnings("ignore:.*master_weight_bits=None:UserWarning")
@pytest.mark.parametrize(
    ("rule", "number_format", "dtype", "bits"),
    CORE_CASES,
    ids=[f"{c[0].name}-{c[1]}-{str(c[2])[6:]}-{c[3]}" for c in CORE_CASES],
)
def test_the_bits_are_those_of_the_core(
    rule: Rule, number_format: str, dtype: torch.dtype, bits: int | None
) -> None:
    ours = support.parameters(dtype)
    theirs = [p.detach().clone() for p in ours]
    optimizer = rule(ours, format=number_format, master_weight_bits=bits)
    renamed = {"lr": "learning_rate", "momentum": "momentum", "weight_decay": "weight_decay"}
    core = c_interface.Core(
        rule.name,
        theirs,
        {"format": c_interface.FORMATS[number_format], "master_weight_bits": bits or 0},
        {renamed[key]: value for key, value in rule.options.items()},
    )
    try:
        for step in range(6):
            given = support.gradients(ours, step)
            for p, g in zip(ours, given, strict=True):
                p.grad = g
            optimizer.step()
            core.set_gradients(given)
            core.step()
        for index, (p, q) in enumerate(zip(ours, theirs, strict=True)):
            assert support.same_bits(p, q), f"weight {index}"
            master = support.masters(optimizer, [p])[0]
            assert support.same_bits(master.flatten(), core.masters(index)), f"master {index}"
            for number, name in enumerate(rule.moments):
                moment = optimizer.state[p][name].materialize()
                assert support.same_bits(moment.flatten(), core.moment(index, number)), f"{name} {index}"
    finally:
        core.close()


@pytest.mark.parametrize("rule", support.WITH_MOMENTS, ids=support.ids(support.WITH_MOMENTS))
@pytest.mark.parametrize("number_format", ["native", "paper"])
def test_threads_change_no_bit(rule: Rule, number_format: str) -> None:
    taken = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        given = support.parameters(shapes=((300, 500), (64, 96), (33,)))
        optimizer = rule(given, format=number_format)
        support.run(optimizer, given, 3)
        taken.append(support.snapshot(optimizer))
    for other in taken[1:]:
        support.assert_same(taken[0], other)


@pytest.mark.parametrize("rule", support.RULES, ids=support.ids(support.RULES))
def test_one_parameter_at_a_time_changes_no_bit(rule: Rule) -> None:
    together, alone = support.parameters(), support.parameters()
    first, second = rule(together), rule(alone)
    for step in range(4):
        for given in (together, alone):
            for p, g in zip(given, support.gradients(given, step), strict=True):
                p.grad = g
        first.step()
        for p in reversed(alone):
            second.step_param(p)
    support.assert_same(first, second)


@pytest.mark.parametrize("rule", support.RULES, ids=support.ids(support.RULES))
def test_groups_change_no_bit(rule: Rule) -> None:
    together, apart = support.parameters(), support.parameters()
    first = rule(together)
    second = rule([{"params": apart[:1]}, {"params": apart[1:3]}, {"params": apart[3:]}])
    support.run(first, together, 4)
    support.run(second, apart, 4)
    for p, q in zip(together, apart, strict=True):
        assert support.same_bits(p, q)
