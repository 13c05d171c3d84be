r"""The No-U-Turn sampler, preconditioned by the Laplace fit.

.. math:: u = \hat u + L z, \qquad L L^T = (-\nabla^2 \log p(\hat u))^{-1}

In z the posterior is round to second order, so the mass matrix stays the identity and only the
step size is adapted: 200 warm-up iterations do. Chains start apart, at t₇ draws around the mode.
"""

from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from neurodiff.inference.laplace import Modes
from neurodiff.inference.posterior import Posterior, on_one_thread


@dataclass(frozen=True)
class NUTS:
    """Fit by the No-U-Turn sampler.

    Args:
        draws: Draws of each chain.
        warmup: Iterations that adapt the step size and are not kept.
        chains: Number of chains.
        target_accept: Mean acceptance that the step size aims at.

    Raises:
        ValueError: If a chain is too short to be judged.
    """

    draws: int = 1000
    warmup: int = 200
    chains: int = 4
    target_accept: float = 0.8

    def __post_init__(self) -> None:
        if self.draws < 4 or self.warmup < 1 or self.chains < 1:
            raise ValueError(f"got {self}, wanted at least 4 draws, 1 of warm-up and 1 chain")


@on_one_thread  # chains may run in other processes, which know nothing of this one's settings
def run_chain(
    posterior: Posterior, modes: Modes, method: NUTS, seed: int
) -> tuple[Float[Tensor, "draw size"], dict[str, np.ndarray]]:
    """One chain: draws of u, and for each draw the acceptance and whether it diverged.

    Args:
        posterior: A single problem.
        modes: Its mode.
        method: Lengths.
        seed: Of this chain.
    """
    import pyro
    from pyro.infer.mcmc import MCMC
    from pyro.infer.mcmc import NUTS as PyroNUTS

    centre, factor = modes.u[0], modes.factor[0]

    def potential(values: dict[str, Tensor]) -> Tensor:
        return -posterior.log_prob((centre + factor @ values["z"])[None])[0]

    with torch.random.fork_rng(), pyro.settings.context(module_local_params=True):
        pyro.set_rng_seed(seed)
        spread = torch.distributions.StudentT(7.0).sample(centre.shape)
        start = 0.5 * spread.clamp(-3, 3).to(centre)
        kernel = PyroNUTS(
            potential_fn=potential,
            adapt_mass_matrix=False,
            target_accept_prob=method.target_accept,
            max_tree_depth=8,
        )
        chain = MCMC(
            kernel,
            num_samples=method.draws,
            warmup_steps=method.warmup,
            initial_params={"z": start},
            disable_progbar=True,
        )
        chain.run()
        z = chain.get_samples()["z"]
        diverging = np.zeros(method.draws, dtype=bool)
        diverging[list(chain.diagnostics()["divergences"]["chain 0"])] = True
    return centre + z @ factor.T, {"diverging": diverging}


def diagnose(u: Float[Tensor, "chain draw size"]) -> tuple[np.ndarray, np.ndarray]:
    """R-hat and bulk ESS of each component; R-hat is nan for a single chain, which says nothing."""
    from arviz_stats.sampling_diagnostics import ess, rhat

    data = xr.Dataset({"u": (("chain", "draw", "component"), u.cpu().numpy())})
    one = np.full(u.shape[-1], np.nan)
    r_hat = rhat(data)["u"].values if u.shape[0] > 1 else one
    return r_hat, ess(data)["u"].values
