"""The optimizers on a GPU: the bits of the CPU, steps that do not block, graphs, streams,
gradient release, several processes.

Skipped by name where there is no GPU. What does not need a real one runs over the emulated kernels
too (test_emulated_gpu.py). What a user loses if these fail: training that goes on as it does on
the CPU, at the speed of a GPU.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import flashoptim_cpp as flash
import gpu_runs
import pytest
import support
import torch
from flashoptim_cpp import _operators as operators
from gpu_support import GPU, IS_REAL, give_gradients, needs_gpu, needs_real_gpu, on_gpu
from operator_calls import Call
from support import ADAMW, RULES, SGD, Rule, assert_same, clones, ids, masters, run, same_bits

pytestmark = needs_gpu


@contextmanager
def nothing_waits() -> Iterator[None]:
    """Inside, whatever makes the host wait for a GPU raises."""
    if not IS_REAL:
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_real_gpu
def test_every_run_has_the_bits_of_the_cpu() -> None:
    for (name, on_cpu), (_, found) in zip(gpu_runs.runs("cpu"), gpu_runs.runs("cuda"), strict=True):
        assert found == on_cpu, name


@pytest.mark.parametrize("rule", RULES, ids=ids(RULES))
def test_states_and_counts_lie_where_the_weights_do(rule: Rule) -> None:
    given = on_gpu()
    optimizer = rule(given)
    give_gradients(given)
    optimizer.step()
    for parameter in given:
        state = optimizer.state[parameter]
        assert state["step"].device == parameter.device and int(state["step"]) == 1
        assert all(value.device == parameter.device for value in state.values())


def test_two_passes_are_refused_by_name() -> None:
    call = Call([torch.zeros(64, 64)], bits=0)
    call.weights = [weight.to(GPU) for weight in call.weights]
    call.bad = call.bad.to(GPU)
    given = [torch.zeros_like(weight) for weight in call.weights]
    with pytest.raises(ValueError, match="there is no step in two passes"):
        operators.update_moments_(given, *call.arguments(given))
    scalars = torch.zeros(1, 2, dtype=torch.float64)
    rest = (call.steps, call.bad, call.table, call.hyperparameters, scalars)
    with pytest.raises(ValueError, match="there is no step in two passes"):
        operators.apply_update_(call.weights, [], given, *rest)


@pytest.mark.parametrize("policy", ["skip_element", "skip_step"])
def test_no_step_waits(policy: str) -> None:
    given = on_gpu()
    lr = torch.tensor(1e-3, device=GPU)
    groups = [{"params": given[:2], "lr": lr}, {"params": given[2:], "lr": 1e-2}]
    optimizer = flash.FlashAdamW(groups, nonfinite=policy)
    optimizer.found_inf = torch.zeros(1, device=GPU)
    optimizer.grad_scale = torch.full((), 8.0, device=GPU)
    give_gradients(given)
    optimizer.step()
    with nothing_waits():
        for _ in range(3):
            optimizer.clip_grad_norm_(1.0)
            optimizer.step()
            lr.mul_(0.5)
    assert [int(optimizer.state[p]["step"]) for p in given] == [4] * len(given)


def test_a_step_that_is_left_out_starts_no_momentum() -> None:
    given, same = on_gpu(), on_gpu()
    optimizer, reference = SGD(given), SGD(same)
    give_gradients(given, float("inf"))
    optimizer.found_inf = torch.ones(1, device=GPU)
    optimizer.step()
    assert all(int(optimizer.state[p]["step"]) == 0 for p in given)
    optimizer.found_inf.zero_()
    run(optimizer, given, 2)
    run(reference, same, 2)
    assert_same(optimizer, reference)


def test_bad_elements_are_counted_and_warned_of_without_waiting() -> None:
    given = on_gpu()
    optimizer = ADAMW(given)
    give_gradients(given)
    optimizer.step()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(12):
            give_gradients(given)
            given[1].grad[0, :3] = float("nan")  # type: ignore[index]
            with nothing_waits():
                optimizer.step()
            if IS_REAL:
                torch.cuda.synchronize()  # a loop on a GPU gives the counts time to arrive
    assert optimizer.bad_elements() == {0: 0, 1: 36, 2: 0, 3: 0}
    said = [str(warning.message) for warning in caught]  # torch has warnings of its own
    assert sum("3 steps in a row" in text for text in said) == 1, said


def test_error_names_the_parameter() -> None:
    given = on_gpu()
    optimizer = ADAMW(given, nonfinite="error")
    give_gradients(given)
    given[2].grad[0, 0] = float("inf")  # type: ignore[index]
    before = clones(given)
    with pytest.raises(flash.NonFiniteError, match="parameter 2"):
        optimizer.step()
    assert all(map(same_bits, before, given))
    assert optimizer.bad_elements()[2] == 1


def test_a_state_that_was_saved_elsewhere_comes_to_the_weights(tmp_path: Path) -> None:
    given = on_gpu()
    optimizer = ADAMW(given)
    run(optimizer, given, 3)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    saved = torch.load(tmp_path / "state.pt", map_location="cpu", weights_only=True)
    copied = clones(given)
    other = ADAMW(copied)
    other.load_state_dict(saved)
    run(optimizer, given, 2, first=3)
    run(other, copied, 2, first=3)
    assert_same(optimizer, other)


def test_full_precision_weights_are_those_of_the_cpu() -> None:
    given = on_gpu()
    optimizer = ADAMW(given)
    run(optimizer, given, 3)
    on_cpu = [torch.nn.Parameter(p.detach().cpu()) for p in given]
    other = ADAMW(on_cpu)
    other.load_state_dict(optimizer.state_dict())
    for mine, theirs in zip(masters(optimizer, given), masters(other, on_cpu), strict=True):
        assert mine.device.type == GPU
        assert same_bits(mine.cpu(), theirs)


@needs_real_gpu
def test_grad_scaler_steps_without_waiting() -> None:
    given = on_gpu(torch.float16)
    optimizer = ADAMW(given)
    scaler = torch.amp.GradScaler("cuda", init_scale=256.0, growth_interval=1000)

    def train(value: float) -> None:
        optimizer.zero_grad()
        scaler.scale(torch.stack([(p.float() * value).sum() for p in given]).sum()).backward()
        scaler.step(optimizer)

    train(1e-2)
    scaler.update()
    before = clones(given)
    with nothing_waits():
        train(float("inf"))
    assert all(map(same_bits, before, given))
    scaler.update()
    with nothing_waits():
        train(1e-2)
    assert [int(optimizer.state[p]["step"]) for p in given] == [2] * len(given)


@needs_real_gpu
@pytest.mark.parametrize("rule", [SGD, ADAMW], ids=ids([SGD, ADAMW]))
def test_a_captured_step_is_replayed_with_what_lies_on_the_device(rule: Rule) -> None:
    given, same = on_gpu(), on_gpu()
    lr, other_lr = (torch.tensor(1e-3, device=GPU) for _ in range(2))
    optimizer, reference = rule(given, lr=lr), rule(same, lr=other_lr)
    inputs = torch.zeros((), device=GPU)

    def train(tensors: list[torch.nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
        for tensor in tensors:
            tensor.grad = torch.ones_like(tensor) * inputs
        optimizer.step()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        train(given, optimizer)
    torch.cuda.current_stream().wait_stream(side)
    train(same, reference)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        train(given, optimizer)
    for step in range(4):
        inputs.fill_(0.01 * step)
        for rate in (lr, other_lr):
            rate.fill_(1e-3 / (step + 1))
        graph.replay()
        train(same, reference)
        assert_same(optimizer, reference)
        if step == 1:  # an ordinary step between replays changes nothing for the graph
            train(given, optimizer)
            train(same, reference)


@needs_real_gpu
def test_steps_on_several_streams_follow_each_other() -> None:
    given, same = on_gpu(), on_gpu()
    optimizer, reference = ADAMW(given), ADAMW(same)
    streams = [torch.cuda.Stream() for _ in range(3)]
    for step in range(6):
        stream = streams[step % 3]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            run(optimizer, given, 1, first=step)
        torch.cuda.current_stream().wait_stream(stream)
    run(reference, same, 6)
    torch.cuda.synchronize()
    assert_same(optimizer, reference)


@needs_real_gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
def test_parameters_on_several_devices() -> None:
    given = on_gpu()
    for n, parameter in enumerate(given):
        parameter.data = parameter.data.to(f"cuda:{n % 2}")
    same = on_gpu()
    optimizer, reference = ADAMW(given), ADAMW(same)
    run(optimizer, given, 3)
    run(reference, same, 3)
    assert all(same_bits(a.cpu(), b.cpu()) for a, b in zip(given, same, strict=True))


def test_a_process_ends_with_a_live_optimizer() -> None:
    """What it leaves on a GPU is the driver's to give back, which may be gone before the last object is."""
    program = f"""
import torch, flashoptim_cpp as flash
p = torch.nn.Parameter(torch.ones(64, 96, device="{GPU}"))
optimizer = flash.FlashAdamW([p])
p.grad = torch.ones_like(p)
optimizer.step()
print("stepped")
"""
    assert support.child("-c", program).strip() == "stepped"


@needs_real_gpu
def test_fsdp2_and_nccl_on_one_gpu() -> None:
    program = """
import os, torch, torch.distributed as dist, flashoptim_cpp as flash
from torch.distributed.fsdp import fully_shard
from support import batch, model
dist.init_process_group("nccl", rank=0, world_size=1)
def train(sharded):
    network = model().cuda()
    if sharded:
        fully_shard(network)
    optimizer = flash.FlashAdamW(network.parameters(), lr=1e-2, nonfinite="skip_step")
    for step in range(3):
        inputs, classes = batch(step)
        loss = torch.nn.functional.cross_entropy(network(inputs.cuda()).float(), classes.cuda())
        loss.backward()
        optimizer.clip_grad_norm_(0.1)
        optimizer.step()
        optimizer.zero_grad()
    return [p.full_tensor() if sharded else p for p in network.parameters()]
for a, b in zip(train(True), train(False), strict=True):
    assert torch.equal(a, b)
print("same", flush=True)
os._exit(0)
"""
    said = support.child("-c", program, MASTER_ADDR="127.0.0.1", MASTER_PORT="29533")
    assert "same" in said
