"""Hugging Face's Trainer, accelerate and PyTorch Lightning with a tiny model; each is
skipped where it is not installed.

What a user loses if these fail: the framework that runs their training loop. `make
test-integrations` installs all three.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import flashoptim_cpp as flash
import pytest
import support
import torch

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


class Lines(torch.utils.data.Dataset):
    """Sequences that repeat themselves: easy to learn."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = torch.arange(16) * (index % 3 + 1) % 50
        return {"input_ids": tokens, "labels": tokens}


def tiny_llama() -> Any:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    size = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    network = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=80, **size, **heads))
    flash.cast_model(network)
    return network


def test_a_cast_llama_is_the_one_that_transformers_loads(tmp_path: Path) -> None:
    """Bit for bit, long contexts included; `model.to(bfloat16)` rounds the rotary
    frequencies and is far from it."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    size = {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 2, "vocab_size": 256}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 4096}
    exact = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**size, **heads, initializer_range=0.1)
    ).eval()
    exact.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    ours, whole = copy.deepcopy(exact), copy.deepcopy(exact).to(torch.bfloat16)
    flash.cast_model(ours)
    tokens = torch.randint(256, (1, 2048))

    def divergence(model: Any) -> float:
        with torch.no_grad():
            p, q = (m(tokens).logits.double().log_softmax(-1) for m in (exact, model))
        return float((p.exp() * (p - q)).sum(-1).mean())

    with torch.no_grad():
        assert torch.equal(ours(tokens).logits, loaded(tokens).logits)
    assert {name: b.dtype for name, b in ours.named_buffers()} == {
        n: b.dtype for n, b in loaded.named_buffers()
    }
    assert divergence(ours) < 0.25 * divergence(whole)


def test_a_layer_of_transformers_stays_fp32() -> None:
    """Its inputs come by keyword, its rotary tables in a tuple; the whole model's
    output is a dataclass and a dict."""
    transformers = pytest.importorskip("transformers")
    network = tiny_llama()
    for layers in (["model.layers.1"], ["model"], [""]):
        torch.manual_seed(0)
        network = transformers.LlamaForCausalLM(copy.deepcopy(network.config))
        flash.cast_model(network, full_precision_recast_layers=layers)
        out = network(input_ids=torch.arange(12)[None], output_hidden_states=True)
        assert type(out).__name__ == "CausalLMOutputWithPast"
        assert out.logits.dtype == out["logits"].dtype == out.hidden_states[-1].dtype == torch.bfloat16
        out.logits.float().sum().backward()


def trainer(folder: Path, steps: int, **more: Any) -> tuple[Any, Any]:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    network = tiny_llama()
    optimizer = flash.FlashAdamW(network.named_parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    options = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=4,
        save_steps=4,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **more,
    )
    made = transformers.Trainer(
        model=network, args=options, train_dataset=Lines(), optimizers=(optimizer, schedule)
    )
    return made, optimizer


def masters(optimizer: Any, network: torch.nn.Module) -> dict[str, torch.Tensor]:
    taken: dict[str, torch.Tensor] = optimizer.get_fp32_model_state_dict(network)
    return taken


def test_transformers_trainer(tmp_path: Path) -> None:
    """optimizers=(opt, sched): trains, saves, and resumes to the bits of the run that was not interrupted."""
    straight, first = trainer(tmp_path / "straight", 8)
    straight.train()
    losses = [entry["loss"] for entry in straight.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    resumed, second = trainer(tmp_path / "resumed", 8)
    resumed.train(resume_from_checkpoint=str(tmp_path / "straight" / "checkpoint-4"))
    expected = masters(first, straight.model)
    for name, value in masters(second, resumed.model).items():
        assert support.same_bits(value, expected[name]), name


@pytest.mark.parametrize("accumulate", [1, 2])
def test_transformers_trainer_clips_and_accumulates(tmp_path: Path, accumulate: int) -> None:
    made, optimizer = trainer(tmp_path, 4, max_grad_norm=0.5, gradient_accumulation_steps=accumulate)
    made.train()
    assert {int(state["step"]) for state in optimizer.state.values()} == {4}


def test_accelerate(tmp_path: Path) -> None:
    """prepare, backward, clip, save_state and load_state."""
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)

    def made() -> tuple[Any, Any]:
        network = support.model()
        optimizer = flash.FlashAdamW(network.parameters(), lr=1e-2)
        return accelerator.prepare(network, optimizer)

    def train(network: Any, optimizer: Any, steps: range) -> None:
        for step in steps:
            accelerator.backward(support.loss_of(network, step))
            accelerator.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    network, optimizer = made()
    train(network, optimizer, range(3))
    accelerator.save_state(str(tmp_path / "state"))
    train(network, optimizer, range(3, 5))
    end = support.snapshot(optimizer.optimizer)
    accelerator.load_state(str(tmp_path / "state"))
    train(network, optimizer, range(3, 5))
    support.assert_same(end, optimizer.optimizer)


def test_lightning(tmp_path: Path) -> None:
    """configure_optimizers with a schedule; a checkpoint of the fit resumes with the same bits."""
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.network = support.model()

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            inputs, classes = batch
            return torch.nn.functional.cross_entropy(self.network(inputs).float(), classes)

        def configure_optimizers(self) -> dict[str, Any]:
            optimizer = flash.FlashAdamW(self.parameters(), lr=1e-2)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=20)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    batches: Any = [support.batch(step) for step in range(8)]

    def fit(steps: int, resume: Path | None = None) -> tuple[Any, Any]:
        module = Module()
        made = lightning.Trainer(
            max_steps=steps,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        loader: Any = torch.utils.data.DataLoader(batches, batch_size=None)
        made.fit(module, loader, ckpt_path=resume)
        return made, module

    straight, _ = fit(6)
    broken, _ = fit(3)
    broken.save_checkpoint(tmp_path / "half.ckpt")
    resumed, _ = fit(6, tmp_path / "half.ckpt")
    # Whether the loader is wound forward is Lightning's matter: what is compared is
    # the state at the interruption.
    assert int(next(iter(resumed.optimizers[0].state.values()))["step"]) == 6
    assert int(next(iter(straight.optimizers[0].state.values()))["step"]) == 6
    saved = torch.load(tmp_path / "half.ckpt", weights_only=False)
    loaded = flash.FlashAdamW(support.clones(broken.optimizers[0].param_groups[0]["params"]))
    loaded.load_state_dict(saved["optimizer_states"][0])
    support.assert_same(broken.optimizers[0], loaded)


@pytest.mark.parametrize("order", [("model", "optimizer"), ("optimizer", "model")], ids="-".join)
def test_fabric_loads_in_either_order(order: tuple[str, str], tmp_path: Path) -> None:
    fabric = pytest.importorskip("lightning").fabric.Fabric(accelerator="cpu", devices=1)

    def made(seed: int) -> dict[str, Any]:
        network = support.model(seed=seed)
        parts = fabric.setup(network, flash.FlashAdamW(network.parameters()))
        return dict(zip(("model", "optimizer"), parts, strict=True))

    def train(parts: dict[str, Any], steps: int, first: int) -> None:
        support.run(parts["optimizer"], list(parts["model"].parameters()), steps, first=first)

    source, target = made(0), made(1)
    train(source, 4, 0)
    fabric.save(tmp_path / "run.ckpt", {name: source[name] for name in order})
    fabric.load(tmp_path / "run.ckpt", {name: target[name] for name in order})
    for parts in (source, target):
        train(parts, 2, 4)
    support.assert_same(source["optimizer"].optimizer, target["optimizer"].optimizer)


@pytest.mark.filterwarnings("ignore:.*converted.*:UserWarning")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_lightning_moves_a_loaded_state_before_its_weights_come(dtype: torch.dtype) -> None:
    """It makes the state of each parameter anew, while corrections wait for their weights."""
    move = pytest.importorskip("lightning.fabric.utilities.optimizer")._optimizer_to_device
    network = support.model()
    source = flash.FlashAdamW(network.parameters())
    support.run(source, list(network.parameters()), 4)
    results = []
    for moves in (True, False):
        other = support.model(dtype, seed=1)
        options: dict[str, Any] = {"master_weight_bits": 32} if dtype == torch.bfloat16 else {}
        loaded = flash.FlashAdamW(other.parameters(), **options)
        loaded.load_state_dict(source.state_dict())
        if moves:
            move(loaded, torch.device("cpu"))
        other.load_state_dict(network.state_dict())
        support.run(loaded, list(other.parameters()), 1, first=4)
        results.append((other, loaded))
    support.assert_same(results[0][1], results[1][1])


def lightning_fit(folder: Path, optimizer_options: dict[str, Any], **options: Any) -> tuple[Any, list[Any]]:
    """A trained module, and its optimizer's wrapper as the module sees it."""
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.network = support.model(torch.float32)

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            inputs, classes = batch
            return torch.nn.functional.cross_entropy(self.network(inputs.float()).float(), classes)

        def configure_optimizers(self) -> Any:
            return flash.FlashSGD(self.parameters(), lr=1.0, **optimizer_options)

    module = Module()
    made = lightning.Trainer(
        max_steps=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **options,
    )
    loader: Any = torch.utils.data.DataLoader([support.batch(0)], batch_size=None)  # type: ignore[arg-type]
    before = [p.detach().clone() for p in module.parameters()]
    made.fit(module, loader)
    return module, [p.detach() - q for p, q in zip(module.parameters(), before, strict=True)]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_lightning_clips(tmp_path: Path, precision: Any, algorithm: Any) -> None:
    """gradient_clip_val, which Lightning refuses for optimizers that unscale in their
    step: those with fused=True."""
    clipping = {"gradient_clip_val": 1e-3, "gradient_clip_algorithm": algorithm, "precision": precision}
    _, moved = lightning_fit(tmp_path, {}, **clipping)
    flat = torch.cat([m.flatten() for m in moved])
    largest = flat.norm() if algorithm == "norm" else flat.abs().max()
    assert 0.9e-3 < float(largest) < 1.001e-3
    if precision == "bf16-mixed":
        with pytest.raises(RuntimeError, match="does not allow for gradient clipping"):
            lightning_fit(tmp_path, {"fused": True}, **clipping)


@pytest.mark.parametrize("wrapper", ["fabric", "lightning", "accelerate"])
def test_a_wrapper_clips(wrapper: str) -> None:
    """clip_grad_norm_() of the optimizer, called on what the framework gives out."""
    network = support.model(torch.float32)
    optimizer: Any = flash.FlashSGD(network.parameters(), lr=1.0)
    if wrapper == "fabric":
        fabric = pytest.importorskip("lightning.fabric").Fabric(accelerator="cpu", devices=1)
        fabric.launch()
        network, wrapped = fabric.setup(network, optimizer)
    elif wrapper == "lightning":
        core = pytest.importorskip("lightning.pytorch.core.optimizer")
        wrapped = core.LightningOptimizer(optimizer)
        wrapped.step = optimizer.step  # it needs a trainer
    else:
        accelerator = pytest.importorskip("accelerate").Accelerator(cpu=True)
        network, wrapped = accelerator.prepare(network, optimizer)
        wrapped.clip_grad_norm_ = lambda norm: accelerator.clip_grad_norm_(network.parameters(), norm)
    before = [p.detach().clone() for p in network.parameters()]
    support.loss_of(network, 0, torch.float32).backward()
    wrapped.clip_grad_norm_(1e-3)
    wrapped.step()
    moved = torch.cat([(p.detach() - q).flatten() for p, q in zip(network.parameters(), before, strict=True)])
    assert 0.99e-3 < float(moved.norm()) < 1.01e-3
