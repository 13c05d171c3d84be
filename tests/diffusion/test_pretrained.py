"""Networks of others: read as they are, saved and loaded, and refused where the claim is wrong."""

import pytest
import torch

import neurodiff as nd
from neurodiff.diffusion.logsnr import alpha_sigma
from neurodiff.diffusion.parameterization import convert
from neurodiff.diffusion.pretrained import from_callable, from_diffusers
from neurodiff.diffusion.prior import GaussianMixture

diffusers = pytest.importorskip("diffusers")

PRIOR = GaussianMixture(
    torch.ones(2), torch.tensor([[-0.5, 0.3], [0.5, -0.3]]), torch.full((2, 2), 0.02)
)
IMAGES = PRIOR.sample(64, generator=torch.Generator().manual_seed(0))
SCHEDULES = ["flow", "cosine", "edm-sample"]


def as_trained(schedule, output, span):
    """The exact denoiser behind the interface of a network of that path, time and output."""

    def network(z, time):
        logsnr = schedule.logsnr(time / span).to(z)
        a, s = schedule._path(logsnr)
        vp = z / torch.hypot(a, s)[:, None]
        x = PRIOR(vp, logsnr)
        return convert(x, "x", output, z=vp, logsnr=logsnr)

    return network


@pytest.mark.parametrize("path", SCHEDULES)
@pytest.mark.parametrize("output", ["x", "eps", "v", "flow", "F"])
def test_a_right_claim_passes_and_is_the_denoiser(path, output):
    schedule = nd.schedule(path)
    network = as_trained(schedule, output, 1000.0)
    denoiser = from_callable(network, schedule, output, span=1000.0, images=IMAGES)
    z, logsnr = torch.randn(20, 2), torch.linspace(-6, 6, 20)
    assert (denoiser(z, logsnr) - PRIOR(z, logsnr)).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("claim", "truth"), [("eps", "v"), ("v", "eps"), ("x", "eps"), ("flow", "v"), ("F", "x")]
)
def test_a_wrong_parameterization_is_refused_and_the_right_one_named(claim, truth):
    schedule = nd.schedule("cosine")
    with pytest.raises(ValueError, match=f"said to put out {claim}, and output {truth} denoises"):
        from_callable(as_trained(schedule, truth, 1.0), schedule, claim, images=IMAGES)


@pytest.mark.parametrize(
    ("claim", "truth"), [("cosine-shifted", "cosine"), ("flow", "flow-shifted")]
)
def test_a_wrong_schedule_is_refused(claim, truth):
    shift = {"shift": -3.0} if claim == "cosine-shifted" else {}
    network = as_trained(nd.schedule(truth), "eps", 1.0)
    with pytest.raises(ValueError, match="nats from the schedule's denoises"):
        from_callable(network, nd.schedule(claim, **shift), "eps", images=IMAGES)


def unet(**options):
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, norm_num_groups=4,
        block_out_channels=(8, 16), down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), **options,
    ).double().eval()  # fmt: skip


@pytest.mark.parametrize("stated", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("beta", ["linear", "squaredcos_cap_v2"])
def test_a_saved_network_comes_back_and_is_read_as_its_scheduler_does(tmp_path, stated, beta):
    net = unet(num_class_embeds=3)
    scheduler = diffusers.DDPMScheduler(
        prediction_type=stated, beta_schedule=beta, clip_sample=False
    )
    net.save_pretrained(tmp_path / "net")
    scheduler.save_pretrained(tmp_path / "scheduler")
    back = diffusers.UNet2DModel.from_pretrained(tmp_path / "net").double().eval()
    own = diffusers.DDPMScheduler.from_pretrained(tmp_path / "scheduler")
    denoiser = from_diffusers(back, own)
    x, eps, label = torch.rand(2, 1, 8, 8), torch.randn(2, 1, 8, 8), torch.tensor([0, 2])
    for t in (50, 500, 900):
        power = own.alphas_cumprod[t].double()
        logsnr = torch.log(power / (1 - power)).expand(2)
        a, s = (v[:, None, None, None] for v in alpha_sigma(logsnr))
        z = a * x + s * eps
        with torch.no_grad():
            out = net(z, t, class_labels=label).sample
            theirs = own.step(out, t, z).pred_original_sample
            # their table of levels is in single precision, and so is their estimate
            found = denoiser(z, logsnr, label)
        assert (found - theirs).abs().max() < 1e-4 * theirs.abs().max()


def test_flow_matching_networks_get_their_time_and_put_out_a_velocity():
    net, scheduler = unet(), diffusers.FlowMatchEulerDiscreteScheduler()
    denoiser = from_diffusers(net, scheduler)
    t, x, eps = 0.3, torch.rand(2, 1, 8, 8), torch.randn(2, 1, 8, 8)
    z = (1 - t) * x + t * eps
    logsnr = 2 * torch.log(torch.tensor((1 - t) / t))
    with torch.no_grad():
        u = net(z, torch.tensor([1000 * t, 1000 * t])).sample
        found = denoiser(z / ((1 - t) ** 2 + t**2) ** 0.5, logsnr)
    assert (found - (z - t * u)).abs().max() < 1e-6


def test_an_untrained_network_is_refused_where_images_are_given():
    images = torch.rand(16, 1, 8, 8) * 2 - 1
    with pytest.raises(ValueError, match="check parameterization and schedule"):
        from_diffusers(
            unet(), diffusers.DDPMScheduler(prediction_type="v_prediction"), images=images
        )


def test_a_scheduler_that_lies_is_refused():
    class Other(diffusers.DDPMScheduler):
        def add_noise(self, x, eps, time):
            return super().add_noise(x, eps, time // 2)

    with pytest.raises(ValueError, match="its own noise or estimate of x differs"):
        from_diffusers(unet(), Other())
