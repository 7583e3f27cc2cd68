"""What an optimizer tells about itself: its memory and its options."""

from typing import TYPE_CHECKING

from .corrections import correction_in
from .moment import Moment
from .sharding import local_of

if TYPE_CHECKING:
    from .optimizer import FlashOptimizer


def memory_report(optimizer: "FlashOptimizer") -> dict[str, float]:
    """Bytes on this rank, by what they hold, and their sum by parameter."""
    report = dict.fromkeys(("weights", "corrections", "moments", "scales", "gradients"), 0)
    parameters = 0
    for tensor, _ in optimizer._tensors_and_groups():
        local = local_of(tensor)
        parameters += local.numel()
        report["weights"] += local.nbytes
        if tensor.grad is not None:
            report["gradients"] += local_of(tensor.grad).nbytes
        state = optimizer.state.get(tensor, {})
        correction = correction_in(state)
        report["corrections"] += 0 if correction is None else correction.nbytes
        for moment in state.values():
            if isinstance(moment, Moment):
                report["moments"] += moment.codes.nbytes
                report["scales"] += moment.scales.nbytes
    total = sum(report.values())
    return report | {
        "total": total,
        "parameters": parameters,
        "bytes_per_parameter": total / parameters if parameters else 0.0,
    }


def config_text(optimizer: "FlashOptimizer") -> str:
    """Options of the optimizer and of each group, a line each."""
    lines = [
        f"{type(optimizer).__name__} (",
        f"    compress_state_dict: {optimizer._compress_state_dict}",
        f"    check_numerics: {optimizer._check_numerics}",
        f"    gradient_release: {optimizer._live.releases > 0}",
    ]
    for n, group in enumerate(optimizer.param_groups):
        lines += ["", f"Parameter Group {n}"]
        lines += [f"    {key}: {group[key]}" for key in sorted(group) if key not in ("params", "param_names")]
    return "\n".join([*lines, ")"])
