r"""Controls: what a stopping law must beat, or come close to, before its name means anything.

.. math::

    \text{constant:}\quad \text{drive} = \text{const}

    \text{noise floor:}\quad
    P(\text{correct}) = A_m\big(\text{power}\,(\lambda_{eff} + \text{shift})\big),
    \quad e^{-\lambda_{eff}} = e^{-\lambda} + e^{-\lambda_{int}}

The constant (with spike history: history only) is the floor. The :class:`FreeLink` is the ceiling:
a law within two standard errors of it is adequate. The noise floor is the null of psychophysics: a
power law of stimulus strength and a constant internal noise, read out ideally; a stopping law that
does not beat it is reported as "a noise floor suffices". :class:`BetaBinomial` is the usual
psychometric fit. ``permute`` breaks the tie of stimulus and response; it is passed by anything
monotone. All carry the guess, ceiling and lapse of the models they stand beside, else the
difference would be theirs.
"""

import copy
from typing import ClassVar

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from torch.distributions import Distribution, LogNormal, Normal, Uniform, constraints

from neurodiff.data.schema import STIMULUS, require
from neurodiff.perception.beta_binomial import BetaBinomial as BetaBinomial
from neurodiff.perception.beta_binomial import by_level as by_level
from neurodiff.perception.free_link import FreeLink as FreeLink
from neurodiff.perception.frontend import InternalNoise, Nominal, middle
from neurodiff.perception.ideal import alternatives
from neurodiff.perception.observers import Choice, Counts


class Constant(nn.Module):
    """No stimulus: a constant rate (or history only), or one probability of being correct.

    The observer is copied. Of :class:`~neurodiff.observers.Counts` the gain is frozen and the drive
    is 0, which leaves base and history. Of :class:`~neurodiff.observers.Choice` everything is
    frozen (ceiling 1, no lapse) and the drive is learned, Uniform(0, 1), so that the probability
    lies between guess and 1; where the guess rate is learned, between 0 and 1.

    Args:
        observer: The observer of the models that this control stands beside.

    Raises:
        TypeError: If the observer is neither.

    >>> model = Constant(Choice(choices=2))
    >>> model({"logsnr": torch.tensor([-1.0, 3.0])}).probs.detach()
    tensor([0.7500, 0.7500])
    """

    constraints: ClassVar = {"drive": constraints.unit_interval}
    priors: ClassVar = {"drive": Uniform(0.0, 1.0)}

    def __init__(self, observer: nn.Module) -> None:
        super().__init__()
        if not isinstance(observer, Choice | Counts):
            raise TypeError(f"got {type(observer).__name__}, wanted a Choice or a Counts observer")
        self.observer = copy.deepcopy(observer)
        self.drive = nn.Parameter(torch.tensor(0.5))
        if isinstance(self.observer, Counts):
            self.observer.gain.requires_grad_(False)
            self.drive.requires_grad_(False).fill_(0.0)
        else:
            if self.observer.guess.requires_grad:
                self.observer.guess.data.fill_(0.0)
            self.observer.ceiling.data.fill_(1.0)
            self.observer.lapse.data.fill_(0.0)
            self.observer.requires_grad_(False)

    @property
    def requires(self) -> tuple[str, ...]:
        """``logsnr``, of which only the shape is used, and what the observer needs."""
        return tuple(dict.fromkeys(["logsnr", *self.observer.requires]))

    @property
    def response(self) -> str:
        """The variable that the model is a distribution of."""
        return self.observer.response

    def forward(self, trials: dict[str, Tensor]) -> Distribution:
        """The same in every trial, but for the history."""
        return self.observer(self.drive.expand(trials["logsnr"].shape), trials)


class NoiseFloor(nn.Module):
    r"""The null of psychophysics: power law, internal noise, ideal readout.

    .. math:: \text{drive} = \frac{A_m(\text{power}\,(\lambda_{eff} + \text{shift})) - 1/m}{1 - 1/m}

    which :class:`~neurodiff.observers.Choice` turns into answers, with its ceiling and lapse.
    Priors: power LogNormal(0, 1), shift Normal(-middle of the tested logsnr, 5), and internal noise
    Normal(that middle, 3).

    Args:
        choices: Number m of alternatives.
        internal: Whether internal noise is added; not where the front end adds it already.
        front_end: What turns the stimulus into logsnr; by default the logsnr of the data.

    Raises:
        ValueError: If there are fewer than two alternatives.

    >>> NoiseFloor(2)({"logsnr": torch.tensor([-torch.inf])}).probs.round(decimals=4).item()
    0.5
    """

    response = "correct"
    constraints: ClassVar = {"power": constraints.positive, "shift": constraints.real}
    priors: ClassVar = {"power": LogNormal(0.0, 1.0), "shift": Normal(0.0, 5.0)}

    def __init__(
        self, choices: int, internal: bool = True, front_end: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.observer = Choice(choices=choices)
        self.ideal = alternatives(choices)
        self.front_end = Nominal() if front_end is None else front_end
        self.noise = InternalNoise() if internal else None
        self.power = nn.Parameter(torch.tensor(1.0))
        self.shift = nn.Parameter(torch.tensor(0.0))

    @property
    def requires(self) -> tuple[str, ...]:
        """The variables of the front end."""
        return self.front_end.requires  # pyright: ignore

    def centre(self, trials: dict[str, Tensor]) -> dict[str, Distribution]:
        """Default priors of what has a place on logsnr: they follow the tested values."""
        place = middle(self.front_end, trials)
        found: dict[str, Distribution] = {"shift": Normal(-place, 5.0)}
        if self.noise is not None:
            found["noise.logsnr_int"] = Normal(place, 3.0)
        own = getattr(self.front_end, "centre", None)
        return (
            found if own is None else found | {f"front_end.{k}": v for k, v in own(trials).items()}
        )

    def forward(self, trials: dict[str, Tensor]) -> Distribution:
        """The probability of a correct answer."""
        logsnr = self.front_end(trials)
        if self.noise is not None:
            logsnr = self.noise({"logsnr": logsnr})
        # at ±inf a derivative would be inf·0 = NaN, so the power law never sees them
        finite = torch.isfinite(logsnr)
        inside = torch.where(finite, logsnr, 0.0)
        accuracy = self.ideal(self.power * (inside + self.shift))
        chance = self.ideal.chance
        drive = torch.where(finite, (accuracy - chance) / (1 - chance), (logsnr > 0).to(accuracy))
        return self.observer(drive, trials)


def permute(data: xr.Dataset, seed: int, within: str | None = None) -> xr.Dataset:
    """A copy of the data whose responses meet other trials' stimuli.

    Trials exchange their stimuli (logsnr, and what else describes the stimulus) within each value
    of ``within``. In a time series whole blocks do, in logsnr and in power alike, and no block
    keeps its own: what is left is the effect of the stimulus on nothing. Of a table of evidence the
    noise levels are permuted, those that a stimulus reaches among themselves.

    Args:
        data: One study.
        seed: The same seed gives the same permutation.
        within: A coordinate of the trials; by default ``subject`` where there is one. For time
            series the coordinate of the blocks; by default ``block``.

    Raises:
        DataError: If the coordinate is missing.
        ValueError: If there are fewer than two blocks, or they are not of equal length.

    >>> data = xr.Dataset({"logsnr": ("trial", [0.0, 1.0, 2.0]), "correct": ("trial", [0.0, 1, 1])})
    >>> sorted(permute(data, seed=0)["logsnr"].values.tolist())
    [0.0, 1.0, 2.0]
    """
    generator = np.random.default_rng(seed)
    if "error" in data:
        return _permute_levels(data, generator)
    if "time" in data.dims:
        return _permute_blocks(data, generator, within or "block")
    within = within or ("subject" if "subject" in data.coords else None)
    order = np.arange(data.sizes["trial"])
    if within is None:
        generator.shuffle(order)
    else:
        require(data, [within])
        for value in np.unique(data[within].values):
            own = np.flatnonzero(data[within].values == value)
            order[own] = generator.permutation(own)
    return data.assign({k: (v.dims, v.values[order], v.attrs) for k, v in _stimulus(data, "trial")})


def _permute_levels(data: xr.Dataset, generator: np.random.Generator) -> xr.Dataset:
    """One order of the levels for all stimuli, each keeping those that it has."""
    order = generator.permutation(data.sizes["logsnr"])
    error, width = data["error"].values.copy(), data["width"].values
    for i, some in enumerate(width > 0):
        error[i][:, some] = error[i][:, order[some[order]]]
    return data.assign(error=(data["error"].dims, error))


def _stimulus(data: xr.Dataset, dim: str) -> list[tuple[str, xr.DataArray]]:
    """What describes the stimulus along a dimension, which comes first."""
    names = [str(k) for k, v in data.data_vars.items() if v.dims[:1] == (dim,)]
    return [(k, data[k]) for k in names if k in STIMULUS or k.startswith("logsnr_")]


def _permute_blocks(data: xr.Dataset, generator: np.random.Generator, block: str) -> xr.Dataset:
    require(data, [block])
    label = data[block].values
    starts = np.flatnonzero(np.r_[True, label[1:] != label[:-1]])
    lengths = np.diff(np.r_[starts, len(label)])
    if len(starts) < 2 or (lengths != lengths[0]).any():
        raise ValueError(
            f"{block!r} has {len(starts)} blocks of {sorted({int(n) for n in lengths})} bins, "
            "wanted at least two of equal length: cut the recording to whole blocks"
        )
    # one cycle through all the blocks leaves none in its place
    cycle = generator.permutation(len(starts))
    source = np.empty_like(cycle)
    source[cycle] = np.roll(cycle, 1)
    moved = {}
    for dim in ("time", "sample"):
        for name, variable in _stimulus(data, dim):
            parts = variable.values.reshape(len(starts), -1, *variable.shape[1:])
            moved[name] = (variable.dims, parts[source].reshape(variable.shape), variable.attrs)
    return data.assign(moved)
