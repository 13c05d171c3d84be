r"""Networks that others trained, as denoisers, and a test of what is claimed of them.

.. math:: z_{path} = \sqrt{α_{path}^2 + σ_{path}^2}\; z, \qquad
    t = T\, S(λ), \qquad \text{net}(z_{path}, t) = p\, x + q\, ε

A wrong parameterization or schedule gives pictures all the same, and numbers that mean nothing. So
:func:`from_diffusers` holds its reading of a scheduler against the scheduler itself, and
:func:`check_claim` holds a trained network against images: what is claimed must denoise them
better than every other claim. The usual slip is to take ``timesteps`` for noise levels in order.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from neurodiff.diffusion import laws
from neurodiff.diffusion.denoiser import NetworkDenoiser
from neurodiff.diffusion.logsnr import from_scales
from neurodiff.diffusion.loss import squared_error
from neurodiff.diffusion.named import check_name
from neurodiff.diffusion.parameterization import PAIRS, like
from neurodiff.diffusion.schedule import NoiseSchedule, flow_shifted

_NAMES = {"epsilon": "eps", "sample": "x", "v_prediction": "v", "flow_prediction": "flow"}
_TESTED = (-4.0, -2.0, 0.0, 2.0, 4.0)  # logsnr at which claims are compared
_OFF = 2.0  # nats by which a wrong schedule is off


class OnPath(nn.Module):
    """A network of (z on its own path, its own time), called with z in VP scaling and logsnr.

    Args:
        network: (z, time) or (z, time, cond) → output of the shape of z.
        schedule: of the network: its path, and its time between 0 and 1.
        span: the network's time at 1; 1 for networks of continuous time.
        offset: nats by which logsnr is misread, for :func:`check_claim`.
    """

    def __init__(
        self,
        network: Callable[..., Tensor],
        schedule: NoiseSchedule,
        span: float,
        offset: float = 0.0,
    ) -> None:
        super().__init__()
        self.network, self.schedule, self.span, self.offset = network, schedule, span, offset

    def forward(
        self, z: Tensor, logsnr: Float[Tensor, " batch"], cond: Tensor | None = None
    ) -> Tensor:
        """The network's output at the same z."""
        alpha, sigma = self.schedule._path(logsnr)
        time = self.span * self.schedule.t(logsnr + self.offset).to(z)
        scaled = z * like(torch.hypot(alpha, sigma).to(z), z)
        return self.network(scaled, time) if cond is None else self.network(scaled, time, cond)


def from_callable(
    network: Callable[..., Tensor],
    schedule: NoiseSchedule,
    parameterization: str,
    *,
    span: float = 1.0,
    images: Float[Tensor, "batch *event"] | None = None,
    cond: Shaped[Tensor, "batch ..."] | None = None,
) -> NetworkDenoiser:
    """A denoiser out of any trained network.

    Args:
        network: (z, time) or (z, time, cond) → output, z on the schedule's own path.
        schedule: that it was trained with.
        parameterization: of its output: ``x``, ``eps``, ``v``, ``score``, ``flow`` or ``F``.
        span: the network's time where the schedule's is 1.
        images: like those that it was trained on, in [-1, 1]: the claim is tested on them.
        cond: of the images.

    Raises:
        ValueError: another claim denoises the images better.

    >>> from neurodiff.diffusion.schedule import schedule
    >>> zero = from_callable(lambda z, time: 0 * z, schedule("flow"), "eps")
    >>> zero(torch.ones(1, 2), torch.tensor(0.0))[0, 0]      # z / alpha
    tensor(1.4142)
    """
    check_name("parameterization", PAIRS, parameterization, {})
    denoiser = NetworkDenoiser(OnPath(network, schedule, span), parameterization)
    if images is not None:
        check_claim(denoiser, images, cond)
    return denoiser


@torch.no_grad()
def check_claim(
    denoiser: NetworkDenoiser,
    images: Float[Tensor, "batch *event"],
    cond: Shaped[Tensor, "batch ..."] | None = None,
) -> None:
    """Hold the parameterization and the schedule of a trained network against images.

    At five noise levels from -4 to 4 nats the mean of :math:`e^{-λ/2} m`, the squared error of x̂
    times the root of SNR, has to be least under the claim; rivals are every other parameterization,
    and a schedule that is off by 2 nats either way.

    Args:
        denoiser: from :func:`from_callable`.
        images: in [-1, 1], some dozens.
        cond: of the images.

    Raises:
        ValueError: a rival is better, and which.
    """
    network, claimed = denoiser.network, denoiser.parameterization
    assert isinstance(network, OnPath)

    def error(parameterization: str, offset: float) -> Tensor:
        rival = OnPath(network.network, network.schedule, network.span, offset)
        model, total = NetworkDenoiser(rival, parameterization), torch.zeros(())
        for level in _TESTED:
            generator = torch.Generator(images.device).manual_seed(0)
            eps = torch.randn(images.shape, generator=generator, dtype=images.dtype,
                              device=images.device)  # fmt: skip
            logsnr = images.new_full((len(images),), level)
            m = squared_error(model, images, logsnr, eps, cond)
            total = total + (m * (-0.5 * logsnr).exp()).mean().cpu()
        return total

    own = error(claimed, 0.0)
    rivals = {f"output {name}": error(name, 0.0) for name in PAIRS if name != claimed}
    for offset in (-_OFF, _OFF):
        rivals[f"a logsnr {offset:+g} nats from the schedule's"] = error(claimed, offset)
    best = min(rivals, key=lambda name: float(rivals[name]))
    if not own < rivals[best]:
        raise ValueError(
            f"the network was said to put out {claimed}, and {best} denoises the {len(images)} "
            f"images better (error {rivals[best]:.3g}, claimed {own:.3g}): check parameterization "
            "and schedule, or that the images are like those of training"
        )


def from_diffusers(
    unet: nn.Module,
    scheduler: Any,  # noqa: ANN401  # of a library that need not be there
    *,
    images: Float[Tensor, "batch *event"] | None = None,
    cond: Shaped[Tensor, "batch ..."] | None = None,
) -> NetworkDenoiser:
    """A denoiser out of a network and scheduler of ``diffusers``.

    Args:
        unet: such as ``UNet2DModel``: called as unet(z, timestep[, class_labels]).sample.
        scheduler: DDPM-like, with ``alphas_cumprod``; or flow matching, with a ``shift``.
        images: in [-1, 1], like those of training: the network is tested on them.
        cond: class labels of the images.

    Raises:
        ValueError: a prediction type that is not known, a scheduler that does not do what it
            says of itself, or images that another claim denoises better.
    """
    config = scheduler.config
    steps = int(config.num_train_timesteps)
    if hasattr(scheduler, "alphas_cumprod"):
        stated = str(config.prediction_type)
        if stated not in _NAMES:
            raise ValueError(f"prediction_type is {stated!r}, wanted one of {', '.join(_NAMES)}")
        power = scheduler.alphas_cumprod.double()
        # the last level may have no signal at all: as far as double precision goes
        levels = from_scales(power.sqrt(), (1 - power).sqrt()).clamp(-30.0, 30.0)
        law = laws.PiecewiseLinear(levels.flip(0), torch.zeros(steps - 1))
        parameterization, schedule = _NAMES[stated], NoiseSchedule(law)
        _check_scheduler(scheduler, parameterization, levels)
        span = steps - 1.0
    else:
        parameterization, schedule = "flow", flow_shifted(1.0)
        span = float(steps)

    def network(z: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        given = {} if labels is None else {"class_labels": labels}
        return unet(z, time, **given).sample

    return from_callable(
        network,
        schedule.requires_grad_(False),
        parameterization,
        span=span,
        images=images,
        cond=cond,
    )


def _check_scheduler(scheduler: Any, parameterization: str, levels: Tensor) -> None:  # noqa: ANN401
    """Its own noise and its own estimate of x, at a few timesteps, against ours."""
    generator = torch.Generator().manual_seed(0)
    x, eps = (torch.rand(2, 1, 3, 3, generator=generator) - 0.5 for _ in range(2))
    for t in (len(levels) // 5, len(levels) // 2, 4 * len(levels) // 5):
        alpha, sigma = (v.float() for v in NoiseSchedule(laws.Normal())._path(levels[t]))
        z, time = alpha * x + sigma * eps, torch.tensor([t])
        theirs = scheduler.add_noise(x, eps, time)
        value = {"x": x, "eps": eps, "v": alpha * eps - sigma * x, "flow": eps - x}[
            parameterization
        ]
        if hasattr(scheduler, "set_timesteps"):
            scheduler.set_timesteps(len(levels))
        found = getattr(scheduler.step(value, t, z), "pred_original_sample", None)
        off = (theirs - z).abs().max() + (0.0 if found is None else (found - x).abs().max())
        if not off < 1e-3:
            raise ValueError(
                f"the scheduler is read as {parameterization} with logsnr {float(levels[t]):.3f} "
                f"at timestep {t}, and its own noise or estimate of x differs by {float(off):.3g}"
            )
