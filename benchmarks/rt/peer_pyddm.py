"""PyDDM on the two monkeys, in an environment of its own (``run.sh``).

As its tutorial on these trials has it: |coherence|, choices towards the motion up (at coherence 0:
to the right), ``gddm``, 2 s, 2 % of uniform lapses. The densities of the two codings are equal
where the model is symmetric, and this one has 6 conditions to solve instead of 11. A constant
bound, which it solves in closed form, is searched by differential evolution, its default, on its
default steps of 0.005 in x and t. With moving bounds that takes 100 s and more a fit, and with a
leak it may end in a poor mode (0.1 nats a trial below, monkey 2): so its simplex searches from a
few starts on steps of 0.01, and the best is polished and scored on 0.005.
"""

import sys

import numpy as np
import pyddm
from held_out import scores
from scipy.optimize import minimize

RANGES = {"k": (0.0, 40.0), "B": (0.2, 8.0), "delay": (0.0, 0.5)}
COLLAPSE = {"tau": (0.05, 20.0)}
LEAK = {"leak": (-10.0, 20.0)}  # negative: unstable

MODELS = {
    "wiener": dict(drift=lambda coh, k: k * coh, bound="B", parameters=RANGES),
    "exponential": dict(
        drift=lambda coh, k: k * coh,
        bound=lambda B, tau, t: B * np.exp(-t / tau),
        parameters=RANGES | COLLAPSE,
    ),
    "leak-exponential": dict(
        drift=lambda coh, k, leak, x: k * coh - leak * x,
        bound=lambda B, tau, t: B * np.exp(-t / tau),
        parameters=RANGES | COLLAPSE | LEAK,
    ),
}
STARTS = {  # k, (leak,) B, tau, delay: the order of the model's own list
    "exponential": [(10, 2.2, 0.5, 0.2), (10, 1.0, 1.5, 0.25)],
    "leak-exponential": [(10, 0.2, 2.2, 0.5, 0.2), (15, 4, 1.2, 1.0, 0.2), (10, -2, 2.5, 1.0, 0.2)],
}


def coded(frame):
    left = frame["coherence"] < 0
    up = frame["choice"].where(~left, 1 - frame["choice"])
    return frame.assign(coh=frame["coherence"].abs(), up=up)[["coh", "up", "rt"]]


def build(name, step):
    return pyddm.gddm(
        **MODELS[name],
        nondecision="delay",
        conditions=["coh"],
        choice_names=("up", "down"),
        dx=step,
        dt=step,
    )


def parameters(model):
    names, values = model.get_model_parameter_names(), model.get_model_parameters()
    return {name: float(value) for name, value in zip(names, values, strict=True)}


def simplex(starts, evaluations):
    def search(loss, x_0, constraints):
        ends = {"maxfev": evaluations, "fatol": 0.01, "xatol": 1e-3}
        ways = {"method": "Nelder-Mead", "bounds": constraints, "options": ends}
        return min((minimize(loss, start, **ways) for start in starts), key=lambda end: end.fun)

    return search


def fit(name):
    def score(train, test):
        train, test = coded(train), coded(test)
        sample = pyddm.Sample.from_pandas_dataframe(
            train, rt_column_name="rt", choice_column_name="up", choice_names=("up", "down")
        )
        if name == "wiener":
            np.random.seed(0)  # noqa: NPY002 (what its differential evolution draws from)
            model = build(name, 0.005)
            model.fit(sample, verbose=False)
        else:
            model = build(name, 0.01)
            model.fit(sample, fitting_method=simplex(STARTS[name], 400), verbose=False)
            found = [float(value) for value in model.get_model_parameters()]
            model = build(name, 0.005)
            model.fit(sample, fitting_method=simplex([found], 150), verbose=False)
        density = np.zeros(len(test))
        for coh in np.unique(test["coh"]):
            solution = model.solve(conditions={"coh": coh})
            for up, side in ((1, "up"), (0, "down")):
                rows = ((test["coh"] == coh) & (test["up"] == up)).to_numpy()
                place = np.round(test.loc[rows, "rt"] / model.dt).astype(int)
                density[rows] = solution.pdf(side)[place]
        return np.log(density), parameters(model)

    return score


if __name__ == "__main__":
    monkeys = [int(word) for word in sys.argv[1:] if word.isdigit()] or (1, 2)
    for name in [word for word in sys.argv[1:] if word in MODELS] or MODELS:
        scores("PyDDM", name, pyddm.__version__, fit(name), monkeys)
