"""The authors' own code beside ours in the `paper` format: 100 steps of each optimizer,
and states exchanged both ways.

What a user loses if these fail: continuing here what was begun there, and the other way round. A
development test: it needs `pip install --no-deps flashoptim==0.1.4 triton`, or 0.1.3
(FLASHOPTIM_AUTHORS_PYTHON names an interpreter that has them), and authors_on_cpu.py
(FLASHOPTIM_AUTHORS_ON_CPU), and is skipped where one of them is absent.

Differences that remain, and why:
- None in weights, corrections, codes and scales. Their tool's powers are rounded correctly
  first (authors_worker.py says why).
- Their state dict holds corrections in the weights' dtype and scales by bits in
  bfloat16; ours in their own dtypes.
- Their loader makes `step` a float, as torch does where a group says `fused`.
- Their SGD, SGDW and Lion count no steps: loaded states of these begin at step 0, which `paper` does not use.
- 0.1.3 saves moments without codes in bfloat16, and its loader casts scales to the weights'
  dtype: ours cannot go on there.
- Without quantization they keep moments in the weights' dtype; ours are fp32, so
  only fp32 weights can be compared.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import flashoptim_cpp as flash
import pytest
import support
import torch

HERE = Path(__file__).resolve().parent
TOOL = Path(
    os.environ.get("FLASHOPTIM_AUTHORS_ON_CPU", HERE.parents[2] / "shared" / "tools" / "authors_on_cpu.py")
)
PYTHON = os.environ.get("FLASHOPTIM_AUTHORS_PYTHON", sys.executable)
STEPS = 100
SHAPES = ((6, 23), (75,))  # groups run over rows and end short


def absent() -> str:
    """What is missing, or nothing."""
    if not TOOL.exists():
        return f"authors_on_cpu.py is not at {TOOL}"
    probe = "import importlib.util as u, sys; "
    probe += "sys.exit(not (u.find_spec('flashoptim') and u.find_spec('triton')))"
    if subprocess.run([PYTHON, "-c", probe], check=False).returncode != 0:
        return f"{PYTHON} has no flashoptim and triton"
    return ""


def is_013() -> bool:
    words = [PYTHON, "-c", "import importlib.metadata as m; print(m.version('flashoptim'))"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.startswith("0.1.3")


MISSING = absent()
IS_013 = not MISSING and is_013()
pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=MISSING),
    pytest.mark.filterwarnings("ignore:.*master_weight_bits=None:UserWarning"),
]

RULES: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("FlashSGD", {"lr": 1e-2, "weight_decay": 1e-2}),
    "sgd-momentum": (
        "FlashSGD",
        {"lr": 1e-2, "momentum": 0.9, "dampening": 0.1, "weight_decay": 1e-2},
    ),
    "sgdw-nesterov": (
        "FlashSGDW",
        {"lr": 1e-2, "momentum": 0.9, "weight_decay": 0.1, "nesterov": True},
    ),
    "adam": ("FlashAdam", {"lr": 1e-3, "weight_decay": 1e-2}),
    "adamw": ("FlashAdamW", {"lr": 1e-3, "weight_decay": 1e-2}),
    "adamw-decoupled-lr": ("FlashAdamW", {"lr": 1e-3, "weight_decay": 1e-3, "decouple_lr": True}),
    "lion": ("FlashLion", {"lr": 1e-4, "weight_decay": 0.1}),
}
VARIANTS: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "bf16-24": (torch.bfloat16, {"master_weight_bits": 24}),
    "bf16-32": (torch.bfloat16, {"master_weight_bits": 32}),
    "bf16-none": (torch.bfloat16, {"master_weight_bits": None}),
    "fp16-24": (torch.float16, {"master_weight_bits": 24}),
    "fp32": (torch.float32, {"master_weight_bits": None}),
    "fp32-unquantised": (torch.float32, {"master_weight_bits": None, "quantize": False}),
}
CASES = {f"{rule}-bf16-24": (rule, "bf16-24") for rule in RULES}
CASES |= {f"adamw-{variant}": ("adamw", variant) for variant in VARIANTS}
PLAIN = ("sgd-momentum-bf16-24", "adamw-bf16-24", "lion-bf16-24")  # states exchanged without codes, too
HALVES = [(name, True) for name in CASES] + [(name, False) for name in PLAIN]


def job(name: str, steps: int, first: int = 0) -> dict[str, Any]:
    rule, variant = CASES[name]
    dtype, storage = VARIANTS[variant]
    kind, options = RULES[rule]
    weights = [p.detach() for p in support.parameters(dtype, SHAPES)]
    given = [support.gradients(weights, step) for step in range(first, first + steps)]
    return {"rule": kind, "arguments": {**options, **storage}, "weights": weights, "gradients": given}


def ask(folder: Path, jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    torch.save(jobs, folder / "request.pt")
    command = [PYTHON, str(HERE / "authors_worker.py"), str(TOOL), "request.pt", "answer.pt"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr
    answer: list[dict[str, Any]] = torch.load(folder / "answer.pt", weights_only=False)
    return answer


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What their code makes of every case."""
    answers = ask(tmp_path_factory.mktemp("authors"), [job(name, STEPS) for name in CASES])
    return dict(zip(CASES, answers, strict=True))


def ours(given: dict[str, Any]) -> tuple[Any, list[torch.nn.Parameter]]:
    parameters = support.clones(given["weights"])
    return getattr(flash, given["rule"])(parameters, **given["arguments"], format="paper"), parameters


def assert_as_theirs(optimizer: Any, p: torch.Tensor, expected: dict[str, Any], where: str) -> None:
    state = optimizer.state[p]
    found: dict[str, Any] = {"weights": p.detach(), "error_bits": state.get("error_bits")}
    for key in ("exp_avg", "exp_avg_sq", "momentum_buffer"):
        if key in state:
            moment = state[key]
            if moment.is_quantized():
                found |= {f"{key}.codes": moment.quantized, f"{key}.scales": moment.scales}
            else:
                found[key] = moment.materialize()
    for key, value in expected.items():
        if key == "step":
            assert int(state["step"]) == int(value), where
        else:
            assert support.same_bits(found[key].reshape(value.shape), value), f"{where}: {key}"


@pytest.mark.parametrize("name", CASES)
def test_step_by_step(name: str, theirs: dict[str, dict[str, Any]]) -> None:
    given = job(name, STEPS)
    optimizer, parameters = ours(given)
    for step, (grads, expected) in enumerate(zip(given["gradients"], theirs[name]["steps"], strict=True)):
        for p, g in zip(parameters, grads, strict=True):
            p.grad = g
        optimizer.step()
        for index, p in enumerate(parameters):
            assert_as_theirs(optimizer, p, expected[index], f"step {step + 1}, parameter {index}")


HALF = STEPS // 2


@pytest.mark.parametrize(("name", "compress"), HALVES, ids=[f"{n}{'' if c else '-plain'}" for n, c in HALVES])
def test_their_state_goes_on_here(
    name: str, compress: bool, theirs: dict[str, dict[str, Any]], exchanged: dict[str, Any]
) -> None:
    """Their half-way state dict, loaded by ours: the second half has their bits (with
    plain moments: within a code)."""
    given = job(name, STEPS - HALF, first=HALF)
    given["weights"] = [state["weights"] for state in theirs[name]["steps"][HALF - 1]]
    optimizer, parameters = ours(given)
    optimizer.load_state_dict(exchanged["half"][name, compress])
    compress = compress and not (IS_013 and name == "adamw-fp32-unquantised")
    for index, p in enumerate(parameters):
        expected = theirs[name]["steps"][HALF - 1][index]
        if compress:
            assert_as_theirs(optimizer, p, expected, "loaded")
        elif "error_bits" in expected:
            assert support.same_bits(optimizer.state[p]["error_bits"], expected["error_bits"])
    for grads in given["gradients"]:
        for p, g in zip(parameters, grads, strict=True):
            p.grad = g
        optimizer.step()
    for index, p in enumerate(parameters):
        expected = theirs[name]["steps"][-1][index]
        if compress:
            assert_as_theirs(optimizer, p, expected, "the end")
        else:
            torch.testing.assert_close(p.detach(), expected["weights"], rtol=0.05, atol=0.02)


@pytest.mark.skipif(IS_013, reason="0.1.3 casts the scales that it loads")
@pytest.mark.parametrize("name", CASES)
def test_our_state_goes_on_there(
    name: str, theirs: dict[str, dict[str, Any]], exchanged: dict[str, Any]
) -> None:
    """Our half-way state dict, loaded by theirs: the second half has the bits of their straight run."""
    for index, expected in enumerate(theirs[name]["steps"][-1]):
        for key, value in expected.items():
            found = exchanged["back"][name]["steps"][-1][index][key]
            if key == "step":  # torch casts it to fp32 on the way, as our groups say `fused`
                assert int(found) == int(value)
            else:
                assert support.same_bits(found, value), f"parameter {index}: {key}"


@pytest.fixture(scope="module")
def exchanged(tmp_path_factory: pytest.TempPathFactory, theirs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Their state dicts at half way, with and without codes; and what they make of ours."""
    jobs, back = [], []
    for name, compress in HALVES:
        half = job(name, HALF)
        # 0.1.3 refuses to compress what is not quantized.
        is_quantized = half["arguments"].get("quantize", True)
        half["arguments"] |= {"compress_state_dict": compress and is_quantized}
        jobs.append(half)
    for name in CASES:
        optimizer, parameters = ours(job(name, HALF))
        for grads in job(name, HALF)["gradients"]:
            for p, g in zip(parameters, grads, strict=True):
                p.grad = g
            optimizer.step()
        rest = job(name, STEPS - HALF, first=HALF)
        back.append(
            rest | {"weights": [p.detach() for p in parameters], "state": for_theirs(optimizer, parameters)}
        )
    answers = ask(tmp_path_factory.mktemp("exchange"), jobs + back)
    halves = [answer["state"] for answer in answers[: len(jobs)]]
    return {
        "half": dict(zip(HALVES, halves, strict=True)),
        "back": dict(zip(CASES, answers[len(jobs) :], strict=True)),
    }


def for_theirs(optimizer: Any, parameters: list[torch.nn.Parameter]) -> dict[str, Any]:
    """Our state dict as their loader needs it (docs/migration.md): torch casts every floating
    state but `step` to the weights' dtype on the way, so 16-bit integers and scales travel under
    that dtype's name, bit for bit."""
    saved: dict[str, Any] = optimizer.state_dict()
    for index, state in saved["state"].items():
        dtype = parameters[index].dtype
        for key, value in state.items():
            if value.dtype == torch.int16 or (key.endswith("::scales") and dtype == torch.bfloat16):
                state[key] = value.view(dtype)
    for group in saved["param_groups"]:
        group["master_bytewidth"] = (group["master_weight_bits"] or 0) // 8
    return saved
