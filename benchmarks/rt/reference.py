"""Constant-bound fits of each monkey's trials, for ``tests/perception/reference/``.

    python benchmarks/rt/reference.py scipy       # in the environment of each tool; ``run.sh`` does
    python benchmarks/rt/reference.py PyDDM
    python benchmarks/rt/reference.py HDDM
    python benchmarks/rt/reference.py HSSM
    python benchmarks/rt/reference.py write

scipy is ``wiener.py``, to a slope below 1e-6. The others are their own densities at scipy's
maximum and at the end of a simplex from 3 % off it: PyDDM's closed form on steps of 1 ms, the
resolution of the times, ``wfpt`` of HDDM (``hddm-wfpt``), and HSSM's analytical density. In units
of dX = (k c + v0) dt + dB, bounds ±a, start z a.
"""

import functools
import importlib.metadata
import json
import sys

import numpy as np
from held_out import HERE, LAPSE, LAPSE_DENSITY, RESULTS, trials
from scipy.optimize import minimize

MODELS = {"symmetric": ("k", "height", "delay"), "biased": ("k", "height", "delay", "v0", "start")}
CASES = [(1, m, p) for m in MODELS for p in (0.0, LAPSE)] + [
    (2, m, p) for m in MODELS for p in (0.0, LAPSE)
]
PACKAGE = {"scipy": "scipy", "PyDDM": "pyddm", "HDDM": "hddm-wfpt", "HSSM": "hssm"}


def by_pyddm(frame, k, height, delay, v0=0.0, start=0.0, lapse=LAPSE):
    import pyddm

    step = 1e-3
    parts = dict(drift=lambda coh: k * coh + v0, bound=height, starting_position=start)
    steps = dict(dx=step, dt=step, T_dur=2.0)
    model = pyddm.gddm(**parts, **steps, mixture_coef=0, conditions=["coh"])
    density = np.zeros(len(frame))
    # its non-decision time comes in steps, so the times are shifted instead, between its values
    for coh in np.unique(frame["coherence"]):
        solution = model.solve(conditions={"coh": coh})
        for choice, side in ((1, "correct"), (0, "error")):
            rows = ((frame["coherence"] == coh) & (frame["choice"] == choice)).to_numpy()
            left = frame.loc[rows, "rt"].to_numpy() - delay
            density[rows] = np.interp(left, model.t_domain(), solution.pdf(side), left=0.0)
    with np.errstate(divide="ignore"):
        return np.log((1 - lapse) * density + lapse * LAPSE_DENSITY)


def by_hddm(frame, k, height, delay, v0=0.0, start=0.0, lapse=LAPSE):
    from hddm_wfpt import wfpt

    signed = frame["rt"].to_numpy() * (2 * frame["choice"].to_numpy() - 1)  # lower bound: negative
    fixed = np.zeros(len(frame))
    drift = k * frame["coherence"].to_numpy() + v0
    decided = wfpt.wiener_logp_array(
        x=signed, v=drift, sv=fixed, a=fixed + 2 * height, z=fixed + (1 + start) / 2,
        sz=fixed, t=fixed + delay, st=fixed, err=1e-12,
    )  # fmt: skip
    return np.log((1 - lapse) * np.exp(decided) + lapse * LAPSE_DENSITY) if lapse else decided


@functools.cache
def hssm_density():
    import pytensor
    import pytensor.tensor as pt
    from hssm.likelihoods.analytical import logp_ddm

    data, v, a, z, t = pt.dmatrix(), pt.dvector(), pt.dscalar(), pt.dscalar(), pt.dscalar()
    return pytensor.function([data, v, a, z, t], logp_ddm(data, v, a, z, t))


def by_hssm(frame, k, height, delay, v0=0.0, start=0.0, lapse=LAPSE):
    data = np.column_stack([frame["rt"], 2.0 * frame["choice"] - 1])
    drift = k * frame["coherence"].to_numpy() + v0
    decided = hssm_density()(data, drift, height, (1 + start) / 2, delay)
    return np.log((1 - lapse) * np.exp(decided) + lapse * LAPSE_DENSITY) if lapse else decided


def fits(tool):
    out = []
    for monkey, name, lapse in CASES:
        frame = trials(monkey)
        if tool == "scipy":
            from wiener import fit

            at, best, slope = fit(frame, MODELS[name], lapse)
            found = at | {"log_likelihood": best, "largest_slope": slope}
        else:
            density = {"PyDDM": by_pyddm, "HDDM": by_hddm, "HSSM": by_hssm}[tool]
            scipys = json.loads((RESULTS / "reference.scipy.json").read_text())["fits"]
            if tool == "PyDDM" and lapse == 0:
                continue
            case = {"monkey": monkey, "model": name, "lapse": lapse}
            scipy_fit = next(fit for fit in scipys if fit | case == fit)
            at = [scipy_fit[key] for key in MODELS[name]]

            def loss(x, density=density, frame=frame, lapse=lapse):
                value = -density(frame, *x, lapse=lapse).sum()
                return value if np.isfinite(value) else 1e9

            ends = {"xatol": 1e-5, "fatol": 1e-4, "maxfev": 150 if tool == "PyDDM" else 400}
            off = np.array(at) * [1.03, 1.03, 0.97, 1.03, 1.03][: len(at)]
            end = minimize(loss, off, method="Nelder-Mead", options=ends)
            found = dict(zip(MODELS[name], map(float, end.x), strict=True))
            found |= {"log_likelihood": -end.fun, "log_likelihood_at_scipy": -loss(at)}
        out.append({"monkey": monkey, "model": name, "lapse": lapse, "trials": len(frame)} | found)
        print(tool, out[-1], flush=True)
    version = importlib.metadata.version(PACKAGE[tool])
    text = json.dumps({"package": PACKAGE[tool], "version": version, "fits": out}, indent=1)
    (RESULTS / f"reference.{tool}.json").write_text(text)


CONVENTIONS = {
    "units": "dX = (k c + v0) dt + dB, c signed coherence, bounds +-height, X(0) = start * height, "
    "response time = delay + first passage; seconds; choice 1 is the upper bound",
    "lapse": "share of lapses, whose density is 0.25 1/s at each choice (uniform over 2 s)",
    "trials": "response times from 0.1 to 1.65 s; densities are not renormalised to that window",
    "scipy": "as the units",
    "PyDDM": "bound B = height, starting_position = start (ratio), nondecision = delay, noise 1; "
    "between steps of 1 ms by lines; with lapses only, since without them that is too coarse",
    "HDDM": "wfpt: a = 2 height (the full separation), z = (1 + start)/2, t = delay, noise 1",
    "HSSM": "a = height (half the separation), z = (1 + start)/2, t = delay, noise 1; log density "
    "-66.1 before t, so that its maximum without lapses may pass over the fastest trials",
}


def write():
    tools = {}
    for tool in PACKAGE:
        path = RESULTS / f"reference.{tool}.json"
        if path.exists():
            tools[tool] = json.loads(path.read_text())
    path = HERE.parents[1] / "tests" / "perception" / "reference" / "wiener_roitman.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"conventions": CONVENTIONS, "tools": tools}, indent=1) + "\n")


if __name__ == "__main__":
    write() if sys.argv[1] == "write" else fits(sys.argv[1])
