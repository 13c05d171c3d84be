"""Calibration of every fitted model: 300 sets at truths from the prior, ranks and recovery.

python benchmarks/calibration.py [--sets 300] [--only NAME]     an hour and a half on a core

Writes calibration.csv: rows of models that were run take the place of their old ones, others stay.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch.distributions import LogNormal, Normal

import neurodiff as nd
from neurodiff.inference.calibration import calibrate, recovery
from neurodiff.perception import bounds
from neurodiff.perception.bounded import Bounded
from neurodiff.perception.categories import Linear
from neurodiff.perception.confidence import Cuts, Reports
from neurodiff.perception.deadline import DeadlineMixture
from neurodiff.perception.drifts import Leak, Urgency
from neurodiff.perception.drifts import Power as PowerDrift
from neurodiff.perception.frontend import InternalNoise
from neurodiff.perception.ideal import Binary
from neurodiff.perception.measurement import Power, Stopped
from neurodiff.perception.orientation import Categorise, strengths
from neurodiff.perception.pulses import Leaky, Pulses, Stops, StopsFreely
from neurodiff.perception.race import Race
from neurodiff.perception.strength_stop import StrengthStop
from neurodiff.perception.timed import SnrStop, TimeStop

LEVELS = np.linspace(-5, 3, 9)


def choices(repeats):
    level = np.repeat(LEVELS, repeats)
    return xr.Dataset({"logsnr": ("trial", level), "correct": ("trial", np.ones_like(level))})


def bins(count):
    level = np.linspace(-5, 5, count)
    return xr.Dataset({"logsnr": ("time", level), "count": ("time", np.ones_like(level))})


def decisions(repeats):
    strength = np.repeat([-0.3, -0.1, 0.0, 0.1, 0.3], repeats)
    columns = {"strength": strength, "choice_known": np.ones_like(strength)}
    columns |= {"signed_rt": np.ones_like(strength)}
    return xr.Dataset({name: ("trial", values) for name, values in columns.items()})


def labels(stimuli=60, times=10):
    """A table of errors as a denoiser might have, and who answers to it how often."""
    rng, grid = np.random.default_rng(0), np.linspace(-5.75, 3.75, 20)
    error = rng.gamma(2.0, 0.3, (stimuli, 4, 20)) * np.exp(0.2 * grid)
    dims = ("stimulus", "label", "logsnr")
    width = np.full((stimuli, 20), 0.5)
    table = xr.Dataset(
        {"error": (dims, error), "width": (dims[::2], width)},
        {"stimulus": np.arange(stimuli), "logsnr": grid},
    )
    shown = np.repeat(np.arange(stimuli) * 1.0, times)
    return table, xr.Dataset({"shown": ("trial", shown), "choice": ("trial", 0 * shown)})


def samples(trials=2100):
    """One to five samples of evidence, whose ratios are those of normals 1.35 s.d. apart."""
    rng = np.random.default_rng(0)
    count = rng.integers(1, 6, trials)
    side = rng.choice([-1.0, 1.0], (trials, 1))
    llr = 0.9 * side + 1.35 * rng.normal(size=(trials, 5))
    llr[np.arange(5) >= count[:, None]] = 0.0
    return xr.Dataset({
        "pulse_llr": (("trial", "pulse"), llr), "pulse_count": ("trial", count * 1.0),
        "choice": ("trial", np.zeros(trials)),
    })  # fmt: skip


def orientations(times=4):
    """Both categories of task B at six strengths, as in Adler & Ma."""
    rng, level = np.random.default_rng(0), np.repeat(np.arange(6.0), 6 * times)
    s = rng.normal(0, np.where(np.arange(len(level)) % 2, 12.0, 3.0))
    columns = {"orientation": s, "level": level, "choice": 0 * s, "report": 0 * s}
    return xr.Dataset({name: ("trial", values) for name, values in columns.items()})


def survival(law):
    return nd.SurvivalWeighting(law)


def models():
    """Name, model, design, and priors where the default ones would simulate data without spikes."""
    two, sixteen = nd.observers.Choice(choices=2), nd.observers.Choice(choices=16)
    spikes = {
        "observer.base": LogNormal(np.log(20.0), 0.5),
        "observer.gain": LogNormal(np.log(300.0), 0.5),
    }
    place = {"weighting.law.loc": Normal(-1.0, 2.0)}
    laws = nd.laws
    yield "choice of 2, logistic", nd.Threshold(survival(laws.Logistic()), two), choices(20), {}
    yield "choice of 16, normal", nd.Threshold(survival(laws.Normal()), sixteen), choices(20), {}
    yield (
        "choice of 16, GumbelMax",
        nd.Threshold(survival(laws.GumbelMax()), sixteen),
        choices(20),
        {},
    )
    yield "choice of 16, sigmoid", nd.Threshold(nd.weighting("sigmoid"), sixteen), choices(20), {}
    free = nd.observers.Choice()
    yield "choice, guess learned", nd.Threshold(survival(laws.Logistic()), free), choices(20), {}
    noisy = nd.Threshold(survival(laws.Logistic()), sixteen, InternalNoise())
    yield "choice of 16, internal noise", noisy, choices(20), {}
    limited = nd.Limited(survival(laws.Logistic()), Binary())
    yield "limited, logistic", limited, choices(20), {}
    table, answers = labels()
    averaged = nd.AveragedEvidence(survival(laws.Logistic()), table)
    yield "labels, averaged evidence", averaged, answers, {}
    stopped = nd.StoppedEvidence(survival(laws.Logistic()), table)
    yield "labels, stopped evidence", stopped, answers, {}
    heard = {"gain": LogNormal(0.0, 0.4), "use.weighting.law.loc": Normal(1.0, 0.7)}
    yield "samples, stopping law", Pulses(Stops(survival(laws.Logistic()))), samples(), heard
    yield "samples, any falling w", Pulses(StopsFreely()), samples(), {"gain": heard["gain"]}
    yield "samples, leak", Pulses(Leaky()), samples(), {"gain": heard["gain"]}
    # people whose noise is of the size of what they see, as most people's is
    shown, six = orientations(), strengths(6)
    usual = {"measurement.shift": Normal(-3.0, 1.0), "measurement.power": LogNormal(-0.5, 0.4)}
    usual |= {"rule.offset": Normal(5.0, 2.0), "rule.slope": Normal(0.7, 0.4)}
    floor, stops = Power(six, floor=True), Stopped(six, laws.Logistic())
    ends = {"measurement.floor": Normal(-2.0, 1.5)}
    yield "orientation, noise floor", Categorise(floor, Linear("B")), shown, usual | ends
    stop = {"measurement.law.loc": Normal(-2.0, 1.5), "measurement.law.scale": LogNormal(-0.5, 0.7)}
    yield "orientation, stopping law", Categorise(stops, Linear("B")), shown, usual | stop
    yield "orientation and confidence, floor", Reports(floor, Cuts("B")), shown, usual | ends
    one = nd.observers.Counts(history=0)
    yield (
        "spikes, one a bin",
        nd.Threshold(survival(laws.Logistic()), one),
        bins(300),
        spikes | place,
    )
    many = nd.observers.Counts(history=0, width=0.05, most=None)
    yield (
        "counts, Poisson",
        nd.Threshold(survival(laws.Logistic()), many),
        bins(100),
        spikes | place,
    )
    over = nd.observers.Counts(history=0, width=0.05, most=None, dispersion=0.3)
    yield (
        "counts, neg. binomial",
        nd.Threshold(survival(laws.Logistic()), over),
        bins(100),
        spikes | place,
    )
    # stops that most simulated decisions reach within the horizon, in more than a few of the steps;
    # the grid is coarse, and is that of the simulation: this tests the inference, not the solver
    gain, height = LogNormal(np.log(8.0), 0.4), LogNormal(0.0, 0.3)
    span = 1.6, 40
    for name, bound in (("constant", bounds.Constant()), ("exponential", bounds.Exponential())):
        model = Bounded(PowerDrift(), bound, *span, start=0.0)
        reached = {"bound.height": height, "drift.gain": gain}
        yield f"choice and time, {name} bound", model, decisions(30), reached
    clock = TimeStop(PowerDrift(), laws.Normal(), *span, start=0.0)
    soon = {"law.loc": Normal(np.log(0.5), 0.4), "drift.gain": gain}
    yield "choice and time, time stop", clock, decisions(30), soon
    sizes = [0.0, 0.1, 0.3]
    own = StrengthStop(PowerDrift(), laws.Normal(0.0, 0.4), sizes, *span, start=0.0)
    places = {"place": Normal(np.log(0.5), 0.4), "drift.gain": gain}
    yield "choice and time, strength stop", own, decisions(30), places
    snr = SnrStop(PowerDrift(), laws.Normal(), *span, start=0.0)
    seen = {"law.loc": Normal(-0.7, 0.7), "law.scale": LogNormal(np.log(0.5), 0.5)}
    yield "choice and time, SNR stop", snr, decisions(30), seen | {"drift.gain": gain}
    race = Race(PowerDrift(), *span, start=0.0)
    run = {"height": height, "base": Normal(1.5, 1.0), "drift.gain": gain}
    yield "choice and time, race", race, decisions(30), run
    # as often given up as carried through
    either = DeadlineMixture(PowerDrift(), bounds.Constant(), laws.Normal(), *span, start=0.0)
    late = reached | {"law.loc": Normal(np.log(0.6), 0.4)}
    yield "choice and time, deadline beside a bound", either, decisions(30), late
    leaky = Bounded(Leak(), bounds.Constant(), *span, start=0.0)
    yield "choice and time, leak", leaky, decisions(30), reached | {"drift.leak": Normal(0.0, 1.5)}
    urgent = Bounded(Urgency(), bounds.Constant(), *span, start=0.0)
    yield "choice and time, urgency", urgent, decisions(30), reached
    falling = bounds.Weibull(), bounds.Linear(), bounds.Spline(span[0])
    for name, bound in zip(("Weibull", "linear", "spline"), falling, strict=True):
        model = Bounded(PowerDrift(), bound, *span, start=0.0)
        yield f"choice and time, {name} bound", model, decisions(30), reached


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", type=int, default=300)
    parser.add_argument("--only", default="", help="models whose names hold this")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".csv"))
    options = parser.parse_args()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    rows, order = [], []
    old = pd.read_csv(options.out) if options.out.exists() else pd.DataFrame({"model": []})
    for name, model, design, priors in models():
        order.append(name)
        if options.only not in name:
            continue
        began = time.perf_counter()
        result = calibrate(model, design, sets=options.sets, priors=priors, seed=0)
        seconds = time.perf_counter() - began
        p = result.p_values
        for component, values in recovery(result).items():
            rows.append(
                {"model": name, "component": component, "sets": options.sets}
                | {k: round(v, 3) for k, v in values.items()}
                | {"p_uniform": round(p[component], 4), "family_p": round(result.family_p, 4)}
                | {"share_k_hat_above_0.7": round(float((result.k_hat > 0.7).mean()), 3)}
                | {"seconds": round(seconds, 1)}
            )
        print(f"{name}: family-wise p = {result.family_p:.3f}, {seconds:.0f} s", flush=True)
        new = pd.DataFrame(rows)
        table = pd.concat([old[~old["model"].isin(new["model"])], new])
        place = table["model"].map({name: i for i, name in enumerate(order)})
        table = table.assign(place=place).sort_values("place", kind="stable")
        table.drop(columns="place").to_csv(options.out, index=False)


if __name__ == "__main__":
    main()
