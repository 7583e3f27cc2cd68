"""The `paper` number format and its optimizers in numpy: IEEE fp32, one rounding per operation, nothing
fused.

test_paper_golden.py holds it against what the authors' package computes. Never a fast implementation, and
never anything of the `native` format.
"""

import dataclasses
from typing import Any

import numpy as np

f32 = np.float32
Case = dict[str, Any]  # an entry of `cases` in the file's metadata
Moments = dict[str, np.ndarray]  # "m", "v": decoded
GROUP = 32
FLOOR = f32(1e-12)  # least divisor of a group
CORRECTION_MAX = {24: 127, 32: 32767}
CORRECTION_TYPES = {24: np.int8, 32: np.int16}


# --------------------------------------------------------------------------------------------- narrow weights


@dataclasses.dataclass(frozen=True)
class Narrow:
    """A 16-bit float type; values of it are held as raw bits (uint16)."""

    mantissa_bits: int
    bias: int

    def widen(self, bits: np.ndarray) -> np.ndarray:
        if self.mantissa_bits == 10:
            return bits.view(np.float16).astype(f32)
        return (bits.astype(np.uint32) << np.uint32(16)).view(f32)

    def nearest(self, values: np.ndarray) -> np.ndarray:
        """To nearest, ties to even; overflow gives infinity."""
        if self.mantissa_bits == 10:
            return values.astype(np.float16).view(np.uint16)
        bits = values.view(np.uint32)
        rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        return np.where(np.isnan(values), np.uint32(0x7FC0), rounded).astype(np.uint16)

    def log2_half_ulp(self, bits: np.ndarray) -> np.ndarray:
        """Zero and subnormals count as the smallest normal binade, infinity as one above the largest."""
        exponent = (bits & np.uint16(0x7FFF)).astype(np.int32) >> self.mantissa_bits
        return np.maximum(exponent, 1) - self.bias - self.mantissa_bits - 1


NARROW = {"BF16": Narrow(7, 127), "F16": Narrow(10, 15)}


def _times_power_of_two(values: np.ndarray, exponent: np.ndarray) -> np.ndarray:
    """Two factors, so that neither over- nor underflows where the product does not."""
    first = exponent // 2  # floor
    return values * np.ldexp(f32(1), first) * np.ldexp(f32(1), exponent - first)


def encode_corrections(wide: np.ndarray, narrow: np.ndarray, kind: Narrow, bits: int) -> np.ndarray:
    error = _times_power_of_two(wide - kind.widen(narrow), -kind.log2_half_ulp(narrow))
    error = np.fmin(np.fmax(error, f32(-1)), f32(1))  # a NaN becomes -1
    scaled = error * f32(CORRECTION_MAX[bits])
    return np.copysign(np.floor(np.abs(scaled) + f32(0.5)), scaled).astype(CORRECTION_TYPES[bits])


def decode_weights(narrow: np.ndarray, corrections: np.ndarray, kind: Narrow, bits: int) -> np.ndarray:
    fraction = corrections.astype(f32) / f32(CORRECTION_MAX[bits])
    return kind.widen(narrow) + _times_power_of_two(fraction, kind.log2_half_ulp(narrow))


# ---------------------------------------------------------------------------------------------------- moments


def _grouped(values: np.ndarray) -> np.ndarray:
    """Rows of 32; the last group is filled up with zeros."""
    return np.pad(values, (0, -len(values) % GROUP)).reshape(-1, GROUP)


def _divisor(groups: np.ndarray) -> np.ndarray:
    """The largest magnitude of each group, a NaN not counting, at least 1e-12."""
    return np.fmax(np.fmax.reduce(np.abs(groups), axis=1), FLOOR)


def _integers(values: np.ndarray, kind: type[np.integer]) -> np.ndarray:
    """A NaN becomes 0."""
    return np.where(np.isnan(values), f32(0), values).astype(kind)


def encode_m(m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    groups = _grouped(m)
    largest = _divisor(groups)
    x = groups / largest[:, None]
    y = (f32(2) * x) / (f32(1) + np.abs(x))
    codes = _integers(np.floor(y * f32(127) + f32(0.5)), np.int8)
    return codes.ravel()[: len(m)], largest.astype(np.float16)


def decode_m(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    y = _grouped(codes.astype(f32) / f32(127))
    return ((y / (f32(2) - np.abs(y))) * scales.astype(f32)[:, None]).ravel()[: len(codes)]


def encode_v(v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    groups = np.sqrt(_grouped(v))
    largest = _divisor(groups)
    codes = _integers(np.floor((groups / largest[:, None]) * f32(255) + f32(0.5)), np.uint8)
    return codes.ravel()[: len(v)], largest.astype(np.float16)


def decode_v(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    root = (_grouped(codes.astype(f32) / f32(255)) * scales.astype(f32)[:, None]).ravel()[: len(codes)]
    return root * root


# ------------------------------------------------------------------------------------------------------ rules


def _power(base: np.float32, exponent: int) -> np.float32:
    """The correctly rounded fp32 power."""
    return f32(np.power(np.float64(base), exponent))


def _decay(case: Case) -> float:
    """Weight decay as the step applies it, in double."""
    if not case["decoupled"]:
        return case["weight_decay"]
    return case["weight_decay"] * (case["lr"] / case["initial_lr"] if case["decouple_lr"] else case["lr"])


def _sgd(case: Case, w: np.ndarray, g: np.ndarray, moments: Moments) -> np.ndarray:
    lr, decay, mu = f32(case["lr"]), _decay(case), f32(case["momentum"])
    if not case["decoupled"]:
        g = g + w * f32(decay)
    if case["momentum"] == 0:  # no buffer; 1 - decay in double
        if case["decoupled"]:
            w = w * f32(1 - decay)
        return w - g * lr
    m = moments["m"] = moments["m"] * mu + g * f32(1 - case["dampening"])  # 1 - dampening in double
    if case["decoupled"]:
        w = w * (f32(1) - f32(decay))
    return w - ((g + mu * m) if case["nesterov"] else m) * lr


def _adam(case: Case, w: np.ndarray, g: np.ndarray, moments: Moments, t: int) -> np.ndarray:
    lr, decay, eps = f32(case["lr"]), f32(_decay(case)), f32(case["eps"])
    beta1, beta2 = (f32(beta) for beta in case["betas"])
    if not case["decoupled"]:
        g = g + w * decay
    m = moments["m"] = moments["m"] * beta1 + g * (f32(1) - beta1)
    v = moments["v"] = moments["v"] * beta2 + (g * g) * (f32(1) - beta2)
    if case["decoupled"]:
        w = w * (f32(1) - decay)
    bias_correction1, bias_correction2 = f32(1) - _power(beta1, t), f32(1) - _power(beta2, t)
    return w - (lr * (m / bias_correction1)) / (np.sqrt(v / bias_correction2) + eps)


def _lion(case: Case, w: np.ndarray, g: np.ndarray, moments: Moments) -> np.ndarray:
    lr, decay = f32(case["lr"]), f32(_decay(case))
    beta1, beta2 = (f32(beta) for beta in case["betas"])
    m = moments["m"]
    c = m * beta1 + g * (f32(1) - beta1)
    moments["m"] = m * beta2 + g * (f32(1) - beta2)
    sign = np.where(c > 0, f32(1), np.where(c < 0, f32(-1), f32(0)))  # 0 for a NaN
    return w * (f32(1) - decay) - sign * lr


# ------------------------------------------------------------------------------------------------------ state


@dataclasses.dataclass
class State:
    """What is stored between steps: weights and moments in the encoding that the case asks for."""

    case: Case
    dtype: str  # F32, BF16 (raw bits), F16 (raw bits)
    stored: dict[str, np.ndarray]  # weights, corrections, m_codes, m_scales, v_codes, v_scales, or m, v
    t: int = 0

    @classmethod
    def initial(cls, case: Case, dtype: str, weights: np.ndarray, corrections: np.ndarray | None) -> "State":
        state = cls(case, dtype, {"weights": weights})
        if corrections is not None:
            state.stored["corrections"] = corrections
        letters = "mv" if case["rule"] in ("adam", "adamw") else "m"
        if case["rule"] in ("sgd", "sgdw") and case["momentum"] == 0:
            letters = ""
        state._encode_moments({letter: np.zeros(len(weights), f32) for letter in letters})
        return state

    def step(self, gradient: np.ndarray) -> None:
        """One step from a gradient of the weights' dtype."""
        self.t += 1
        moments = self._decode_moments()
        w, g, rule = self._decode_weights(), self._widen(gradient), self.case["rule"]
        if rule in ("adam", "adamw"):
            w = _adam(self.case, w, g, moments, self.t)
        elif rule == "lion":
            w = _lion(self.case, w, g, moments)
        else:
            w = _sgd(self.case, w, g, moments)
        self._encode_weights(w)
        self._encode_moments(moments)

    def _widen(self, values: np.ndarray) -> np.ndarray:
        return values if self.dtype == "F32" else NARROW[self.dtype].widen(values)

    def _nearest(self, values: np.ndarray) -> np.ndarray:
        return values if self.dtype == "F32" else NARROW[self.dtype].nearest(values)

    def _decode_weights(self) -> np.ndarray:
        if "corrections" not in self.stored:
            return self._widen(self.stored["weights"])
        bits = self.case["master_weight_bits"]
        return decode_weights(self.stored["weights"], self.stored["corrections"], NARROW[self.dtype], bits)

    def _encode_weights(self, w: np.ndarray) -> None:
        self.stored["weights"] = self._nearest(w)
        if "corrections" in self.stored:
            self.stored["corrections"] = encode_corrections(
                w, self.stored["weights"], NARROW[self.dtype], self.case["master_weight_bits"]
            )

    def _decode_moments(self) -> Moments:
        if not self.case["quantize"]:
            return {letter: self._widen(self.stored[letter]) for letter in "mv" if letter in self.stored}
        decode = {"m": decode_m, "v": decode_v}
        return {
            letter: decode[letter](self.stored[f"{letter}_codes"], self.stored[f"{letter}_scales"])
            for letter in "mv"
            if f"{letter}_codes" in self.stored
        }

    def _encode_moments(self, moments: Moments) -> None:
        for letter, values in moments.items():
            if self.case["quantize"]:
                codes, scales = {"m": encode_m, "v": encode_v}[letter](values)
                self.stored[f"{letter}_codes"], self.stored[f"{letter}_scales"] = codes, scales
            else:
                self.stored[letter] = self._nearest(values)  # in the dtype of the weights
