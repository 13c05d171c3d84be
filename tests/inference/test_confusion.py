"""Telling hypotheses apart: the evidence against quadrature, and winners that are the truth."""

import numpy as np
import pytest
import torch
import xarray as xr

import neurodiff as nd
from neurodiff.inference.confusion import confusion, matrix
from neurodiff.perception.classify import AveragedEvidence, StoppedEvidence
from tests.perception.test_classify import table


def test_few_models_are_refused():
    with pytest.raises(ValueError, match="at least two"):
        confusion({}, xr.Dataset(), seed=0)


def test_a_truth_that_would_be_moved_is_refused():
    columns = {"logsnr": ("trial", [-2.0, 2.0]), "correct": ("trial", [1.0, 1.0])}
    models = {
        w: nd.Threshold(nd.weighting(w), nd.observers.Choice(choices=2))
        for w in ("sigmoid", "step")
    }
    models["step"].observer.lapse.data.fill_(0.0)
    with pytest.raises(ValueError, match=r"step: got observer.lapse = 0.0, wanted a value within"):
        confusion(models, xr.Dataset(columns), sets=1, seed=0)


def test_labels_are_told_apart_where_the_answers_differ():
    t = table(5, stimuli=150)
    data = xr.Dataset(
        {
            "shown": ("trial", np.tile(10.0 + np.arange(150), 40)),
            "choice": ("trial", np.zeros(6000)),
        }
    )
    models = {}
    for name, kind, w in (
        ("elbo", AveragedEvidence, "elbo"),
        ("low", AveragedEvidence, "sigmoid"),
        ("stopped", StoppedEvidence, "sigmoid"),
    ):
        weighting = nd.weighting(w) if w == "elbo" else nd.weighting(w, bias=-2.0)
        models[name] = kind(weighting, t)
        models[name].observer.sensitivity.data.fill_(6.0)
    found = confusion(models, data, sets=6, seed=0)
    share = matrix(found)
    assert (np.diag(share) >= 5 / 6).all(), share
    # the fit of the truth itself is as good as the truth, but for the price of two parameters
    for name, model in models.items():
        p = model({"row": torch.arange(150.0)}).probs.detach().double()
        mean = 40 * (p * p.log()).sum().item()
        sd = np.sqrt(40 * (p * (p.log() - (p * p.log()).sum(-1, keepdim=True)) ** 2).sum().item())
        own = found.query(f"truth == '{name}' and hypothesis == '{name}'")["log_evidence"]
        assert np.all(np.abs(own - mean) < 4 * sd + 15), (name, own, mean, sd)


def test_evidence_is_the_integral():
    # one parameter: the shift of a sigmoid, others fixed; by quadrature over its prior
    columns = {
        "logsnr": ("trial", np.repeat([-2.0, 0.0, 2.0], 1000)),
        "correct": ("trial", np.ones(3000)),
    }
    design = xr.Dataset(columns)

    def model(name):
        made = nd.Threshold(nd.weighting(name), nd.observers.Choice(choices=2))
        made.observer.lapse.requires_grad_(False)
        made.observer.ceiling.requires_grad_(False)
        return made

    models = {"sigmoid": model("sigmoid"), "edm-monotonic": model("edm-monotonic")}
    found = confusion(models, design, sets=2, seed=3)
    from neurodiff.inference.calibration import at_truths, design_of
    from neurodiff.inference.posterior import on_one_thread

    @on_one_thread
    def exact():
        joint = design_of(models["sigmoid"], design)
        with torch.random.fork_rng():
            torch.manual_seed(3)
            problems = at_truths(joint, joint.parameters.start().expand(2, -1))
        u = torch.linspace(-3, 3, 4001)[None, :, None].expand(2, -1, 1)
        log_p = problems.draws_log_prob(u)
        return (torch.logsumexp(log_p, -1) + np.log(6 / 4000)).tolist()

    got = found.query("truth == 'sigmoid' and hypothesis == 'sigmoid'")["log_evidence"]
    # Laplace is right up to the order of 1/trials; the curvature of 3,000 of them leaves little
    assert np.allclose(got, exact(), atol=0.02)
