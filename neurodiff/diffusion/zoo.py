r"""The weightings of machine learning, by name, with their constants.

A loss weights the eps-error at each noise level; all are written in one convention,

.. math:: L_w(x) = \tfrac12 \int w(λ)\, E|\hatε - ε|^2\, dλ, \qquad λ = \mathrm{logsnr},

in which w = 1 is the ELBO. A plain loss c·E_t|err|² whose t ~ U has density p(λ) on logsnr is
w = 2c·p(λ)·(eps-error over err): that is where the constants come from. *Monotone* means
nonincreasing in logsnr; only such a weighting is a survival function. v-MSE under the cosine
schedule is e^{−λ/2} (eps-MSE is the sech). Each function gives log w at finite logsnr, which keeps
the tails; its docstring is w.

References:
    Kingma & Gao 2023 (most rows), Clark & Jaini 2023, Esser et al. 2024 (SD3), Choi et al. 2022
    (P2), Hang et al. 2023 (min-SNR), Karras et al. 2022 (EDM), Delbracio & Milanfar 2023 (InDI).
"""

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from neurodiff.diffusion.law import Law, finite
from neurodiff.diffusion.laws import Exponential, GumbelMin, Logistic

_EDM_PEAK = -3.3077775163808806  # where EDM's slope vanishes: λ = 2.4 − 5.76 σ(−λ + log 4)


class Weighting(nn.Module, ABC):
    """w(logsnr) ≥ 0, elementwise: the multiplier of the eps-error per d(logsnr)."""

    name: str
    monotone: bool  # nonincreasing in logsnr

    @abstractmethod
    def forward(self, logsnr: Tensor) -> Tensor:
        """The weight at any shape of logsnr; ±inf gives the limits."""

    def log(self, logsnr: Tensor) -> Tensor:
        """Log w; a subclass that can keeps it finite where w underflows."""
        return self(logsnr).log()

    def exact_law(self, logsnr_min: float | None) -> Law | None:
        """The stopping law from logsnr_min on, where it is a member of the family."""


class Named(Weighting):
    """A weighting of the zoo: a row of ``ZOO`` with its constants; made by ``weighting(name)``."""

    def __init__(self, name: str, **constants: float) -> None:
        super().__init__()
        row = ZOO[name]
        own = list(inspect.signature(row.log).parameters.values())[1:]
        self.name, self._row = name, row
        self.constants = {p.name: float({p.name: p.default, **constants}[p.name]) for p in own}
        self.monotone = row.monotone(**self.constants) if callable(row.monotone) else row.monotone

    def forward(self, logsnr: Tensor) -> Tensor:
        """The weight, exp(log w)."""
        return self.log(logsnr).exp()

    def log(self, logsnr: Tensor) -> Tensor:
        """Log w."""
        return self._row.log(finite(logsnr), **self.constants)

    def exact_law(self, logsnr_min: float | None) -> Law | None:
        """Exponentials need logsnr_min; the others need none."""
        return self._row.law(logsnr_min, **self.constants) if self._row.law else None

    def extra_repr(self) -> str:
        """The name and the constants."""
        return ", ".join([repr(self.name), *(f"{k}={v:g}" for k, v in self.constants.items())])


def _cosine(logsnr: Tensor) -> Tensor:
    """Log of 2p(λ) of the cosine schedule, sech(λ/2)/π."""
    return math.log(2 / math.pi) + 0.5 * (logsigmoid(logsnr) + logsigmoid(-logsnr))


def _normal(logsnr: Tensor, mean: float, sd: float) -> Tensor:
    return -0.5 * ((logsnr - mean) / sd) ** 2 - math.log(sd * math.sqrt(2 * math.pi))


def elbo(logsnr: Tensor) -> Tensor:
    """1: the ELBO, VDM, ½g²-weighted score matching."""
    return 0.0 * logsnr


def ddpm(logsnr: Tensor) -> Tensor:
    """sech(λ/2)/π: eps-MSE ("L_simple"), cosine."""
    return _cosine(logsnr)


def ddpm_shifted(logsnr: Tensor, shift: float = 2 * math.log(0.5)) -> Tensor:
    """sech((λ − shift)/2)/π: eps-MSE, cosine shifted by 2 log(64/d); here d = 128."""
    return _cosine(logsnr - shift)


def ddpm_linear(logsnr: Tensor) -> Tensor:
    """2σ(−λ)/√(β₀² + 2(β₁ − β₀) log(1 + e^{−λ})), β = (0.1, 20): eps-MSE, linear beta."""
    square = 0.1**2 - 2 * (20 - 0.1) * logsigmoid(logsnr)
    return math.log(2) + logsigmoid(-logsnr) - 0.5 * square.log()


def v_cosine(logsnr: Tensor) -> Tensor:
    """(2/π) e^{−λ/2}: v-MSE, cosine; also x-MSE weighted by SNR + 1."""
    return math.log(2 / math.pi) - 0.5 * logsnr


def v_cosine_shifted(logsnr: Tensor, shift: float = 2 * math.log(0.5)) -> Tensor:
    """(1 + e^{−λ}) sech((λ − shift)/2)/π: v-MSE, shifted cosine."""
    return _cosine(logsnr - shift) - logsigmoid(logsnr)


def x_cosine(logsnr: Tensor) -> Tensor:
    """sech(λ/2) e^{−λ}/π: x-MSE, cosine."""
    return _cosine(logsnr) - logsnr


def flow_matching(logsnr: Tensor) -> Tensor:
    """e^{−λ/2}: u-MSE on the straight path z = (1 − t) x + t eps, t ~ U."""
    return -0.5 * logsnr


def flow_eps(logsnr: Tensor) -> Tensor:
    """sech²(λ/4)/4: eps-MSE on the straight path (FPO's default)."""
    return logsigmoid(0.5 * logsnr) + logsigmoid(-0.5 * logsnr)


def flow_x(logsnr: Tensor) -> Tensor:
    """sech²(λ/4) e^{−λ}/4: x-MSE on the straight path."""
    return flow_eps(logsnr) - logsnr


def edm(logsnr: Tensor, sigma_data: float = 0.5) -> Tensor:
    """2N(λ; 2.4, 2.4²)(e^{−λ} + sigma_data²)/sigma_data²."""
    precision = logsigmoid(logsnr + 2 * math.log(sigma_data))  # −log(1 + e^{−λ}/sigma_data²)
    return math.log(2) + _normal(logsnr, 2.4, 2.4) - precision


def edm_monotonic(logsnr: Tensor) -> Tensor:
    """EDM (sigma_data 0.5), held at its maximum below it."""
    return edm(logsnr.clamp(min=_EDM_PEAK))


def sd3(logsnr: Tensor, m: float = 0.0, s: float = 1.0) -> Tensor:
    """2N(λ; −2m, 4s²)(1 + e^{−λ/2})²: rectified flow, logit t ~ N(m, s²)."""
    return math.log(2) + _normal(logsnr, -2 * m, 2 * s) - 2 * logsigmoid(0.5 * logsnr)


def p2(logsnr: Tensor, k: float = 1.0, gamma: float = 1.0) -> Tensor:
    """sech(λ/2)/(π (k + e^λ)^gamma): perception prioritized."""
    log_sum = math.log(k) - logsigmoid(math.log(k) - logsnr)
    return _cosine(logsnr) - gamma * log_sum


def min_snr(logsnr: Tensor, gamma: float = 5.0) -> Tensor:
    """sech(λ/2) min(1, gamma e^{−λ})/π."""
    return _cosine(logsnr) + (math.log(gamma) - logsnr).clamp(max=0.0)


def soft_min_snr(logsnr: Tensor, gamma: float = 5.0) -> Tensor:
    """sech(λ/2)/π · gamma/(e^λ + gamma)."""
    return _cosine(logsnr) + logsigmoid(math.log(gamma) - logsnr)


def truncated_snr(logsnr: Tensor) -> Tensor:
    """sech(λ/2) max(1, e^{−λ})/π: x-MSE weighted by max(SNR, 1), cosine."""
    return _cosine(logsnr) + (-logsnr).clamp(min=0.0)


def debiased(logsnr: Tensor) -> Tensor:
    """sech(λ/2) e^{−λ/2}/π = (2/π) σ(−λ): eps-MSE weighted by 1/√SNR, cosine; a sigmoid."""
    return math.log(2 / math.pi) + logsigmoid(-logsnr)


def sigmoid(logsnr: Tensor, bias: float = 2.0) -> Tensor:
    """σ(bias − λ): VDM++, SiD2."""
    return logsigmoid(bias - logsnr)


def indi(logsnr: Tensor) -> Tensor:
    """e^{−3λ/2}: InDI read as alpha = 1, sigma = t, x-MSE, t ~ U."""
    return -1.5 * logsnr


def clark_jaini(logsnr: Tensor, rate: float = 7.0) -> Tensor:
    """sech(λ/2) e^{−λ} e^{−rate·t(λ)}/π: x-MSE weighted by e^{−rate·t}, cosine."""
    return x_cosine(logsnr) - 2 / math.pi * rate * torch.atan((-0.5 * logsnr).clamp(max=40).exp())


def smiling(logsnr: Tensor) -> Tensor:
    """sech(λ/2)(1 + e^λ)/π: unweighted score norm, cosine."""
    return _cosine(logsnr) - logsigmoid(-logsnr)


def deadline(logsnr: Tensor, b: float = 0.0) -> Tensor:
    """exp(−e^{λ − b}): an exponential deadline in time."""
    return -(logsnr - b).clamp(max=80.0).exp()


def step(logsnr: Tensor, loc: float = 0.0) -> Tensor:
    """1 for λ < loc, else 0: a fixed deadline."""
    return torch.where(logsnr < loc, 0.0 * logsnr, -torch.inf)


def _exponential(scale: float) -> Callable[..., Law | None]:
    return lambda low: None if low is None else Exponential(low, scale)


class Row(NamedTuple):
    """One weighting: log w, whether w is nonincreasing, and its stopping law if it has a name."""

    log: Callable[..., Tensor]
    monotone: bool | Callable[..., bool]
    law: Callable[..., Law | None] | None = None


ZOO = {
    "elbo": Row(elbo, True),
    "ddpm": Row(ddpm, False),
    "ddpm-linear": Row(ddpm_linear, False),
    "v-cosine": Row(v_cosine, True, _exponential(2.0)),
    "flow-matching": Row(flow_matching, True, _exponential(2.0)),
    "edm": Row(edm, False),
    "edm-monotonic": Row(edm_monotonic, True),
    "sigmoid": Row(sigmoid, True, lambda low, bias: Logistic(bias) if low is None else None),
    "p2": Row(p2, False),
    "min-snr": Row(min_snr, False),
    "soft-min-snr": Row(soft_min_snr, False),
    "sd3": Row(sd3, False),
    "indi": Row(indi, True, _exponential(2 / 3)),
    "debiased": Row(debiased, True, lambda low: Logistic() if low is None else None),
    "truncated-snr": Row(truncated_snr, True),
    "deadline": Row(deadline, True, lambda low, b: GumbelMin(b) if low is None else None),
    "step": Row(step, True),
    # further recipes of the literature
    "ddpm-shifted": Row(ddpm_shifted, False),
    # falls where σ(shift − λ) − σ(−λ) ≤ 1/2; the left side is at most tanh(shift/4)
    "v-cosine-shifted": Row(v_cosine_shifted, lambda shift: shift <= 4 * math.atanh(0.5)),
    "x-cosine": Row(x_cosine, True),
    "flow-eps": Row(flow_eps, False),
    "flow-x": Row(flow_x, True),
    "clark-jaini": Row(clark_jaini, False),
    "smiling": Row(smiling, False),
}
