"""What a CUDA graph may take in, and what a step keeps on a GPU from call to call.

Over the emulated kernels nothing is captured: there the package is told that it is, which is enough for
what it refuses then. What a user loses if these fail: a graph that trains as the steps that it was
captured from, or the memory of a GPU.
"""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import flashoptim_cpp as flash
import pytest
import torch
from flashoptim_cpp import _operators as operators
from flashoptim_cpp import nonfinite
from flashoptim_cpp.states import states_of
from gpu_support import EMULATED, GPU, IS_REAL, give_gradients, needs_gpu, needs_real_gpu, on_gpu
from support import ADAMW, assert_same, gradients, run, same_bits, snapshot

pytestmark = needs_gpu

Capture = Callable[[], AbstractContextManager[None]]


@pytest.fixture
def capturing(monkeypatch: pytest.MonkeyPatch) -> Capture:
    """A context inside which a graph is captured."""

    @contextmanager
    def context() -> Iterator[None]:
        if IS_REAL:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="The CUDA Graph is empty")
                with torch.cuda.graph(torch.cuda.CUDAGraph()):
                    yield
            return
        with monkeypatch.context() as patch:
            patch.setattr(operators, "is_capturing", lambda device: device.type == GPU)
            yield

    return context


def warm(**options: Any) -> tuple[list[torch.nn.Parameter], Any]:
    given = on_gpu()
    optimizer = ADAMW([(f"layer{n}", p) for n, p in enumerate(given)], **options)
    run(optimizer, given, 2)
    return given, optimizer


def test_a_first_step_is_not_captured(capturing: Capture) -> None:
    given = on_gpu()
    optimizer = ADAMW([(f"layer{n}", p) for n, p in enumerate(given)], lr=torch.tensor(1e-3, device=GPU))
    give_gradients(given)
    with capturing(), pytest.raises(RuntimeError, match=r"layer0 has no state yet.*take a step"):
        optimizer.step()
    assert not any(optimizer.state.values())


def test_a_parameter_whose_first_gradient_comes_in_the_capture_is_named(capturing: Capture) -> None:
    given = on_gpu()
    optimizer = ADAMW([(f"layer{n}", p) for n, p in enumerate(given)])
    run(optimizer, given[:3], 2)
    before = snapshot(optimizer)
    give_gradients(given)
    with capturing(), pytest.raises(RuntimeError, match="layer3 has no state yet"):
        optimizer.step()
    assert_same(before, optimizer)


def test_a_written_weight_is_captured(capturing: Capture) -> None:
    """Its correction stays, as it does outside of a graph."""
    given, optimizer = warm()
    with torch.no_grad():
        given[1].copy_(given[1].clone())
    with capturing():
        optimizer.step()


@pytest.mark.parametrize("policy", ["skip_element", "skip_step"])
def test_a_loaded_state_is_not_captured_before_it_is_known(capturing: Capture, policy: str) -> None:
    given, optimizer = warm(nonfinite=policy)
    optimizer.load_state_dict(optimizer.state_dict())
    before = snapshot(optimizer)
    with capturing(), pytest.raises(RuntimeError, match=r"states.* have changed.*grad_norm\(\)"):
        optimizer.step()
    assert_same(before, optimizer)
    optimizer.grad_norm()  # as the message says: no step is taken
    assert_same(before, optimizer)
    with capturing():
        optimizer.step()
    assert given[0].grad is not None


def test_a_changed_policy_is_not_captured(capturing: Capture) -> None:
    _, optimizer = warm()
    optimizer.param_groups[0]["nonfinite"] = "skip_step"
    with capturing(), pytest.raises(RuntimeError, match="nonfinite of a parameter group has changed"):
        optimizer.step()


def test_what_waits_is_not_captured(capturing: Capture) -> None:
    _, optimizer = warm(nonfinite="error")
    before = snapshot(optimizer)
    with capturing(), pytest.raises(RuntimeError, match=r'nonfinite="error" would wait.*"skip_step"'):
        optimizer.step()
    assert_same(before, optimizer)
    _, optimizer = warm(check_numerics=True, lr=torch.tensor(1e-2, device=GPU))
    with capturing(), pytest.raises(RuntimeError, match=r"check_numerics would wait.*check_numerics=False"):
        optimizer.step()
    _, optimizer = warm(check_numerics=True, lr=1e-2)
    with capturing():  # nothing is left to wait for
        optimizer.step()


def test_a_captured_norm_keeps_what_the_graph_reads(capturing: Capture) -> None:
    _, optimizer = warm()
    (tables,) = states_of(optimizer).kept.tables.values()
    with capturing():
        optimizer.clip_grad_norm_(1.0)
    assert states_of(optimizer).kept.captured == tables
    with capturing():
        optimizer.clip_grad_norm_(1.0)
    assert states_of(optimizer).kept.captured == tables


@needs_real_gpu
def test_a_captured_step_is_left_out_at_bad_gradients() -> None:
    given, optimizer = warm(nonfinite="skip_step")
    value = torch.full((), 1e-2, device=GPU)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for parameter in given:
            parameter.grad = torch.ones_like(parameter) * value
        optimizer.step()
    graph.replay()
    before = snapshot(optimizer)
    value.fill_(float("nan"))
    graph.replay()
    assert_same(before, optimizer)
    assert optimizer.bad_elements()["layer3"] == given[3].numel()
    value.fill_(1e-2)
    graph.replay()
    assert int(optimizer.state[given[0]]["step"]) == 4


@needs_real_gpu
@pytest.mark.parametrize("other", ["cpu", "cuda:1"])
def test_a_bad_gradient_on_another_device_changes_nothing(other: str) -> None:
    if torch.device(other).index and torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device")
    given = on_gpu()
    given[3] = torch.nn.Parameter(given[3].detach().to(other))
    optimizer = ADAMW([(f"layer{n}", p) for n, p in enumerate(given)])
    run(optimizer, given, 1)
    before = snapshot(optimizer)
    given[3].grad = given[3].detach().to_sparse()
    with pytest.raises(RuntimeError, match="gradient of layer3 is sparse"):
        optimizer.step()
    assert_same(before, optimizer)


def alternate(optimizer: Any, given: list[torch.nn.Parameter], steps: int, alone: bool = False) -> None:
    """Steps in which another set of parameters has gradients each time."""
    for step in range(steps):
        for n, (p, g) in enumerate(zip(given, gradients(given, step), strict=True)):
            p.grad = g if (step % 15 + 1) >> n & 1 else None
        if alone:
            for p in given:
                optimizer.step_param(p)
        else:
            optimizer.step()


@pytest.mark.skipif(not EMULATED, reason="a real GPU is not full when a test wants it")
def test_a_full_gpu_is_asked_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever allocation or load of a kernel fails: torch gives back what it holds,
    and the step is taken once."""
    emptied: list[bool] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))
    library = ctypes.CDLL(str(Path(operators.__file__).with_name("libflashoptim_operators.so")))
    out_of_memory = 2
    _, reference = warm()
    kernels = 3 + 2 + 1  # of the whole step; of steps with moments in codes and in fp32; of counts
    for call, calls in ((b"cudaMalloc", 4), (b"cudaFuncGetAttributes", kernels)):
        for successes in range(calls):
            emptied.clear()
            library.flashoptim_emulated_unload_kernels()
            library.flashoptim_emulated_fail(call, out_of_memory, successes)
            _, optimizer = warm()
            assert len(emptied) == 1, (call, successes)
            assert_same(optimizer, reference)


def plans_made() -> int:
    return operators.StepPlan().number


def test_alternating_sets_of_gradients_share_one_plan() -> None:
    """Experts that are idle now and then: their lists come and go in one plan's memory."""
    given, same = on_gpu(), on_gpu()
    optimizer, reference = ADAMW(given), ADAMW(same)
    before = plans_made()
    alternate(optimizer, given, 40)
    made = plans_made() - before - 1
    assert made <= 1 + len(given)  # and one for each set of one parameter
    alternate(reference, same, 40, alone=True)
    assert_same(optimizer, reference)


def test_counts_of_sets_that_are_kept_no_more_are_kept() -> None:
    given = [torch.nn.Parameter(torch.ones(8, device=GPU)) for _ in range(24)]
    optimizer = flash.FlashAdamW(given)
    for first in range(23):
        for n, p in enumerate(given):
            p.grad = torch.full_like(p, float("nan")) if n in (first, first + 1) else None
        optimizer.step()
    assert len(states_of(optimizer).kept.tables) <= 16
    counts = list(optimizer.bad_elements().values())
    assert counts == [8] + [16] * 22 + [8]


def test_released_gradients_send_their_counts_together(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    send = nonfinite.Board.send

    def count(board: Any) -> None:
        sent.extend([1] if board._coming is None else [])
        send(board)

    monkeypatch.setattr(nonfinite.Board, "send", count)
    given = on_gpu()
    holder = torch.nn.ParameterList(given)
    optimizer = ADAMW(given)
    handle = flash.enable_gradient_release(holder, optimizer)
    with pytest.warns(UserWarning, match="3 steps in a row.*parameter 1"):
        for step in range(8):
            bad = [g * (float("nan") if n == 1 else 1.0) for n, g in enumerate(gradients(given, step))]
            torch.stack([(p * g).float().sum() for p, g in zip(given, bad, strict=True)]).sum().backward()
            if IS_REAL:
                torch.cuda.synchronize()
    assert len(sent) <= 9
    assert optimizer.bad_elements() == {0: 0, 1: 8 * given[1].numel(), 2: 0, 3: 0}
    handle.remove()


def test_a_scaler_that_saw_no_gradient_at_all() -> None:
    """GradScaler puts the number 0 where nothing was looked at."""
    given, optimizer = warm(nonfinite="skip_step")
    before = snapshot(optimizer)
    for p in given:
        p.grad = None
    optimizer.found_inf, optimizer.grad_scale = 0, torch.tensor(2.0, device=GPU)
    optimizer.step()
    assert_same(before, optimizer)


def test_counts_for_torch_lie_where_torch_keeps_them() -> None:
    given, optimizer = warm()
    saved = optimizer.state_dict_fp32()
    assert {state["step"].device.type for state in saved["state"].values()} == {"cpu"}
    reference = torch.optim.AdamW(given)
    reference.load_state_dict(saved)
    assert int(reference.state[given[0]]["step"]) == 2


def test_a_loaded_learning_rate_is_read_where_it_was() -> None:
    lr = torch.tensor(1e-2, device=GPU)
    given, optimizer = warm(lr=lr)
    saved = optimizer.state_dict()
    saved["param_groups"][0]["lr"] = torch.tensor(3e-3)
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] is lr
    assert same_bits(lr.cpu(), torch.tensor(3e-3))
    assert given[0].device == lr.device
