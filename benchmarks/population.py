"""Rates of many units at once: ours, torch's L-BFGS over all units, and NeMoS's PopulationGLM.

The same ridge for all three (N(0, 1) on every weight), so that they have one optimum: what is held
out has to agree, and what differs is the time, the median of five fits on one thread; NeMoS is
warm (its first fit compiles). 100 units × 2,000 trials × 64 features, simulated counts; and 50
units of V4 × 640 photographs × 64 local energies, five folds, by the correlation with means over
repeats. NeMoS has its own environment (`pip install nemos`) and is not imported here:

    python benchmarks/population.py --peer PYTHON
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

RIDGE = 1.0  # precision of every weight


def simulated():
    """Trials to fit and to hold out, of units whose log rates have an s.d. of about 0.8."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4000, 64))
    eta = 0.5 + x @ rng.normal(scale=0.1, size=(64, 100))
    y = rng.poisson(np.exp(eta)).astype(float)
    yield x[:2000], y[:2000], x[2000:], y[2000:]


def recorded():
    """Five folds of V4: energies of the clean image, standardised on the training images."""
    import torch
    from torch.nn.functional import adaptive_avg_pool2d

    import neurodiff as nd
    from neurodiff.perception.energy import blurred_energy

    data = nd.load("cowley2023-macaque-v4/210325")  # in grey
    grey = torch.from_numpy(data["image"].values[:, :1]).double() / 127.5 - 1
    x = blurred_energy(adaptive_avg_pool2d(grey, 56), torch.zeros(1))[:, 0].numpy()
    y, fold = data["mean_count"].values, np.random.default_rng(0).permutation(640) % 5
    for k in range(5):
        some = fold != k
        z = (x - x[some].mean(0)) / x[some].std(0)
        yield z[some], y[some], z[~some], y[~some]


def ours(x, y):
    import torch

    from neurodiff.inference.population import fit_rates

    φ, none = torch.from_numpy(x)[:, None], torch.zeros(len(x), 0, dtype=torch.float64)
    found = fit_rates(φ, none, torch.from_numpy(y), spread=RIDGE**-0.5, rounds=0)
    return found.base.numpy(), found.weights.numpy()


def lbfgs(x, y):
    import torch

    design = torch.cat([torch.ones(len(x), 1, dtype=torch.float64), torch.from_numpy(x)], 1)
    response = torch.from_numpy(y)
    u = torch.zeros(y.shape[1], design.shape[1], dtype=torch.float64)
    u[:, 0] = response.mean(0).log()
    u.requires_grad_(True)
    solver = torch.optim.LBFGS([u], max_iter=200, line_search_fn="strong_wolfe",
                               tolerance_grad=1e-3, tolerance_change=1e-9)  # fmt: skip

    def closure():
        solver.zero_grad()
        eta = design @ u.T
        loss = (eta.exp() - response * eta).sum() + 0.5 * RIDGE * u[:, 1:].square().sum()
        loss.backward()
        return loss

    solver.step(closure)
    return u[:, 0].detach().numpy(), u[:, 1:].detach().numpy()


def nemos(x, y):
    import jax
    import nemos as nmo

    jax.config.update("jax_enable_x64", True)
    # its loss is the mean over trials (and units)
    strength = RIDGE / x.shape[0]
    model = nmo.glm.PopulationGLM(
        regularizer="Ridge", regularizer_strength=strength, solver_name="LBFGS",
        solver_kwargs={"tol": 1e-8, "maxiter": 2000},
    ).fit(x, y)  # fmt: skip
    return np.asarray(model.intercept_), np.asarray(model.coef_).T


def timed(fit, problems):
    """Median seconds of a fit, and what it found of every problem."""
    found, seconds = [], []
    for x, y, *_ in problems:
        fit(x, y)  # warm
        each = []
        for _ in range(5):
            start = time.perf_counter()
            result = fit(x, y)
            each.append(time.perf_counter() - start)
        seconds.append(np.median(each))
        found.append(result)
    return float(np.median(seconds)), found


def score(found, problems, kind):
    """Held-out nats a trial and unit without log y!, or the mean correlation over units."""
    values = []
    for (base, weights), (_, _, x, y) in zip(found, problems, strict=True):
        eta = base + x @ weights.T
        if kind == "counts":
            values.append(np.mean(y * eta - np.exp(eta)))
        else:
            values.append(np.exp(eta))
    if kind == "counts":
        return float(np.mean(values))
    predicted, y = np.concatenate(values), np.concatenate([p[3] for p in problems])
    return float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(predicted.T, y.T, strict=True)]))


def peer(python, problems):
    """The same in an environment of its own."""
    with tempfile.TemporaryDirectory() as folder:
        given, back = Path(folder) / "given.npz", Path(folder) / "back.npz"
        arrays = {f"{name}{k}": p[i] for k, p in enumerate(problems) for i, name in enumerate("xy")}
        np.savez(given, **arrays)
        subprocess.run([python, __file__, "--serve", str(given), str(back)], check=True)
        with np.load(back) as left:
            found = [(left[f"base{k}"], left[f"weights{k}"]) for k in range(len(problems))]
            return float(left["seconds"]), found


def serve(given, back):
    with np.load(given) as arrays:
        problems = [(arrays[f"x{k}"], arrays[f"y{k}"]) for k in range(len(arrays) // 2)]
    seconds, found = timed(nemos, problems)
    out = {f"base{k}": f[0] for k, f in enumerate(found)}
    out |= {f"weights{k}": f[1] for k, f in enumerate(found)}
    np.savez(back, seconds=seconds, **out)


def main(python):
    import torch

    torch.set_num_threads(1)
    rows = ["data,fit,seconds,ratio,held_out"]
    for name, kind, problems in (
        ("100 units x 2000 trials x 64", "counts", list(simulated())),
        ("V4 210325: 50 units x 512 images x 64", "means", list(recorded())),
    ):
        fits = {"neurodiff": timed(ours, problems), "torch L-BFGS": timed(lbfgs, problems)}
        if python:
            fits["NeMoS"] = peer(python, problems)
        own = fits["neurodiff"][0]
        for fit, (seconds, found) in fits.items():
            value = score(found, problems, kind)
            rows.append(f"{name},{fit},{seconds:.3f},{seconds / own:.2f},{value:.5f}")
            print(rows[-1], flush=True)
    Path(__file__).with_suffix(".csv").write_text("\n".join(rows) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Rates of many units, side by side")
    parser.add_argument("--peer", help="the Python of an environment that has NeMoS")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        serve(*asked.serve)
        sys.exit()
    main(asked.peer)
