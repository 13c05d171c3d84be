r"""Published recipes as what they are: a schedule, a parameterization and a weighting.

.. math:: c\, E_t |\hat y - y|^2 = \tfrac12 E_t\Big[\frac{w(λ)}{p(λ)} |\hat ε - ε|^2\Big]
    \quad \text{with} \quad w(λ) = 2 c\, p(λ)\, \frac{|\hat y - y|^2}{|\hat ε - ε|^2}

so a plain mean squared error of any output y *is* a weighting: the density of the schedule is in
it, once. To draw times from p and weight by a w that holds p already counts the density twice;
:func:`~neurodiff.diffusion.loss.denoising_loss` takes w and divides.

Losses here are sums over dimensions, where codes often take means.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from neurodiff.diffusion.named import check_name
from neurodiff.diffusion.parameterization import error_ratio
from neurodiff.diffusion.schedule import NoiseSchedule, schedule
from neurodiff.diffusion.weighting import weighting
from neurodiff.diffusion.zoo import Weighting


class PlainWeighting(Weighting):
    """The weighting of c times a plain squared error, with times uniform on a schedule.

    Args:
        schedule: of the times.
        parameterization: of the output whose error is squared.
        scale: c.

    >>> flow = PlainWeighting(schedule("flow"), "flow")
    >>> flow(torch.tensor([0.0, 2.0]))      # exp(-logsnr / 2)
    tensor([1.0000, 0.3679])
    """

    def __init__(self, schedule: NoiseSchedule, parameterization: str, scale: float = 1.0) -> None:
        super().__init__()
        self.schedule, self.parameterization, self.scale = schedule, parameterization, scale
        self.name = f"plain {parameterization}"
        with torch.no_grad():
            w = self(torch.linspace(-15.0, 15.0, 3001))
        self.monotone = bool((w.diff() <= 1e-6 * w[1:]).all())

    def forward(self, logsnr: Tensor) -> Tensor:
        """2 c p(λ) times the error in the output for one in ε."""
        alpha, sigma = self.schedule._path(logsnr)
        ratio = error_ratio("eps", self.parameterization, alpha=alpha, sigma=sigma)
        return 2 * self.scale * self.schedule.log_density(logsnr).exp() * ratio


class Recipe(NamedTuple):
    """What a published loss amounts to.

    Attributes:
        schedule: of the times.
        parameterization: what the network is asked for.
        weighting: in the convention of this package.
    """

    schedule: NoiseSchedule
    parameterization: str
    weighting: Weighting


def _plain(times: str, output: str, scale: float = 1.0) -> Callable[[], Recipe]:
    def make() -> Recipe:
        own = schedule(times)
        return Recipe(own, output, PlainWeighting(own, output, scale))

    return make


def _likelihood(times: str, output: str) -> Callable[[], Recipe]:
    return lambda: Recipe(schedule(times), output, weighting("elbo"))


RECIPES: dict[str, Callable[[], Recipe]] = {
    # Ho, Jain & Abbeel 2020: equation 12 in continuous time, and L_simple
    "ddpm": _likelihood("vp-linear", "eps"),
    "l-simple": _plain("vp-linear", "eps"),
    # Song & Ermon 2019: sigma² |score error|², sigma geometric; Song et al. 2021: ½ g² of it
    "score-matching": _plain("ve", "eps"),
    "score-matching-likelihood": _likelihood("vp-linear", "score"),
    # Lipman et al. 2023, conditional optimal transport
    "flow-matching": _plain("flow", "flow"),
    # Salimans & Ho 2022
    "v": _plain("cosine", "v"),
    # Karras et al. 2022
    "edm": _plain("edm-train", "F"),
    # Albergo, Boffi & Vanden-Eijnden 2023, one-sided and trigonometric: dz/dt is π/2 v
    "interpolant": _plain("cosine", "v", (0.5 * math.pi) ** 2),
    # Kingma et al. 2021, with the schedule that they begin from
    "vdm": _likelihood("truncated-cosine", "eps"),
}


def recipe(name: str) -> Recipe:
    """A published recipe by name.

    Raises:
        ValueError: an unknown name; lists the known ones and the nearest.

    >>> recipe("edm").parameterization
    'F'
    >>> torch.allclose(recipe("v").weighting(torch.zeros(1)), weighting("v-cosine")(torch.zeros(1)))
    True
    """
    check_name("recipe", RECIPES, name, {})
    return RECIPES[name]()
