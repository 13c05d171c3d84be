"""Constant bounds on real monkeys: the maximum of the likelihood is where other tools have it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.func import functional_call

import neurodiff as nd
from neurodiff.data.choice_rt import choice_rt
from neurodiff.data.schema import DataError
from neurodiff.inference.join import join
from neurodiff.inference.optimise import minimise
from neurodiff.perception.bounded import Bounded
from neurodiff.perception.bounds import Constant
from neurodiff.perception.drifts import Power

KNOWN = json.loads((Path(__file__).parent / "reference" / "wiener_roitman.json").read_text())
FITS = [fit for fit in KNOWN["tools"]["scipy"]["fits"] if fit["lapse"] == 0.02]


@pytest.mark.parametrize("wanted", FITS, ids=lambda f: f"{f['model']}-{f['monkey']}")
def test_the_maximum_of_the_likelihood(wanted):
    try:
        data = nd.load("roitman2002-monkey-rdm")
    except DataError as error:
        pytest.skip(f"data set: {error}")
    mine = data["subject"].values == "bn"[wanted["monkey"] - 1]
    rt = data["rt"].values
    data = choice_rt(data.isel(trial=mine & (rt >= 0.1) & (rt <= 1.65)))
    assert data.sizes["trial"] == wanted["trials"]
    biased = wanted["model"] == "biased"
    more = {"start": 0.0} if biased else {}
    drift = Power(bias=0.01 if biased else None)
    model = Bounded(drift, Constant(0.8), 2.0, 200, jitter=None, lapse=0.02, **more)
    model.lapse.requires_grad_(False)
    bound = join(model, data)
    joint = bound.posterior

    def negative(u):
        values = joint.parameters.trial_values(u[0])
        answer = functional_call(joint.model, values, (joint.trials,))
        return -(answer.log_prob(joint.response) @ joint.weight)[None]

    found = minimise(negative, bound.start[None], tolerance=1e-9, steps=400)
    got = {k: v.item() for k, v in bound.pooled.constrain(found.u[0]).items()}
    names = {"k": "drift.gain", "height": "bound.height", "delay": "delay"}
    names |= {"v0": "drift.bias", "start": "start"} if biased else {}
    for theirs, ours in names.items():
        assert got[ours] == pytest.approx(wanted[theirs], abs=1e-3), theirs
    assert -found.value.item() == pytest.approx(wanted["log_likelihood"], abs=2e-3)
    assert np.isfinite(torch.linalg.cond(found.inverse).item())
