r"""From the original files of each data set to the agreed names, units and ``logsnr``.

.. math:: \lambda = \log \frac{\alpha^2}{\sigma^2}
          \quad \text{noise: } \log \frac{(0.3)^2 s^2}{w^2 / 3}
          \quad \text{contrast, coherence: } 2 \log c + \text{const}
          \quad \text{phase: } \log \frac{r^2}{1 - r^2}

A decoder takes the files of one part (path in the card ↦ path here) and the card's attributes, and
returns what was recorded; units, names and licence come from the card. Where a study gives no noise
variance, ``logsnr`` is right up to a constant, which is the shift that every model fits.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias, cast

import numpy as np
import pandas as pd
import scipy.io
import xarray as xr
from numpy.typing import ArrayLike

from neurodiff.data.decode_images import cifar10, cifar10h, digits
from neurodiff.data.decode_population import cowley
from neurodiff.data.decode_spikes import brody_clicks, roitman_spikes
from neurodiff.data.schema import DataError

#: what a decoder takes: the files of a part, the part, and the attributes of the card
Files: TypeAlias = dict[str, Path]
Attrs: TypeAlias = dict[str, str | int | float]
#: reference of sound pressure, whose square is the reference of power
REFERENCE = 2e-5
CATEGORIES = tuple(
    "airplane bear bicycle bird boat bottle car cat chair clock dog elephant keyboard knife oven "
    "truck".split()
)
#: variance of the pixels of a photograph at full contrast, and the contrast it is shown at
PIXEL_VARIANCE, CONTRAST = 0.06, 0.3
#: what may stand in a column of Adler & Ma, in one coding or the other
ADLER = {
    "category": ((1, 2), (-1, 1)),
    "choice": ((1, 2), (-1, 1)),
    "confidence": ((1, 2, 3, 4),),
    "task": (("A", "B"),),
}
#: half-width of the noise ↦ logsnr where pixels are clipped to [0, 1]; narrower noise never is
CLIPPED = {0.6: -3.37, 0.9: -4.54}


def grasshopper(files: Files, part: str, attrs: Attrs) -> xr.Dataset:
    """Spikes of an auditory receptor and the power of the tone's amplitude modulation.

    ``power`` [sample] is V², averaged to 0.25 ms, at the time it was played; bin i of ``time``
    covers samples [4i, 4i + 4). ``logsnr`` [time] is ln(mean power / (2e-5)²) over the bin's
    samples a latency earlier; the first bins, which have none, repeat the first sample.
    """
    amplitude = _table(files[f"data/grasshopper_stimulus{part}.txt"], sep=r"\s+", header=None)
    power = (amplitude[1].to_numpy() ** 2).reshape(-1, 5).mean(axis=1)
    spikes = np.loadtxt(files[f"data/grasshopper_spike_times{part}.txt"])
    n = len(power) // 4
    count = np.bincount((spikes // 1000).astype(int), minlength=n)
    if count.max() > 1 or len(count) > n:
        raise DataError(f"grasshopper-receptor/{part}: two spikes in one 1 ms bin, or one too late")
    latency = round(float(attrs["latency"]) * 4e3)
    late = np.pad(power, (latency, 0), mode="edge")[: len(power)]
    logsnr = np.log(late.reshape(-1, 4).mean(axis=1) / REFERENCE**2)
    return xr.Dataset(
        {
            "count": ("time", count.astype(float)),
            "logsnr": ("time", logsnr),
            "power": ("sample", power),
        },
        coords={
            "time": np.arange(n) / 1e3,
            "sample": np.arange(len(power)) / 4e3,
            "block": ("time", np.arange(n) // 500),
        },
    )


def geirhos2018(files: Files, part: str, attrs: Attrs) -> xr.Dataset:
    """Sixteen-way object recognition by people and networks in one of eleven degradations."""
    frames = []
    for path, file in files.items():
        frame = _table(file, dtype=str, keep_default_na=False).rename(columns=str.lower)
        frames.append(frame.assign(kind="network" if path.startswith("dnn/") else "human"))
    frame = pd.concat(frames, ignore_index=True)
    text = {name: frame[name].to_numpy(str) for name in frame}
    index = pd.Series({name: i for i, name in enumerate(CATEGORIES)} | {"na": np.nan})
    choice = index.loc[frame["object_response"]].to_numpy(float)
    right = index.loc[frame["category"]].to_numpy(float)
    stem = frame["imagename"].str.rsplit(".", n=1).str[0]
    columns = {
        "logsnr": None,
        "choice": choice,
        "correct": np.where(np.isnan(choice), np.nan, choice == right),
        "rt": frame["rt"].replace({"NaN": "nan", "na": "nan"}).to_numpy(float),
        "response": np.where(text["object_response"] == "na", "", text["object_response"]),
        "category": text["category"],
        "condition": text["condition"],
        "image": stem.str.split("_").str[-2:].str.join("_").to_numpy(str),
        "session": frame["session"].to_numpy(int),
        "serial": frame["trial"].to_numpy(int),
    } | _degradation(text["condition"], part)
    return xr.Dataset(
        {name: ("trial", values) for name, values in columns.items() if values is not None},
        coords={"subject": ("trial", text["subj"]), "observer_kind": ("trial", text["kind"])},
    )


def _degradation(condition: np.ndarray, experiment: str) -> dict[str, np.ndarray]:
    """Levels as numbers, and ``logsnr`` where the degradation has one number for it."""
    if experiment in ("colour", "false-colour", "power-equalisation"):
        return {}
    if experiment == "eidolon":
        reach, coherence, _ = np.array([c.split("-") for c in condition], float).T
        return {"stimulus_level": reach, "eidolon_coherence": coherence / 10}
    level = np.char.lstrip(condition, "c").astype(float)
    found = {"stimulus_level": level}
    with np.errstate(divide="ignore"):
        if experiment == "noise":
            nominal = np.log(3 * CONTRAST**2 * PIXEL_VARIANCE) - 2 * np.log(level)
            clipped = pd.Series(level).map(CLIPPED).to_numpy(float)
            found["logsnr"] = nominal
            found["logsnr_clipped"] = np.where(np.isnan(clipped), nominal, clipped)
        elif experiment in ("contrast", "contrast-png"):
            found["logsnr"] = 2 * np.log(level / 100)
        elif experiment == "phase-scrambling":
            # numpy's sinc(1) is 4e-17, not 0
            r2 = np.where(level == 180, 0.0, np.sinc(level / 180) ** 2)
            found["logsnr"] = np.log(r2) - np.log1p(-r2)
    return found


def roitman_monkeys(files: Files, part: str, attrs: Attrs) -> xr.Dataset:
    """Direction of random-dot motion by two monkeys, with reaction times."""
    names = {"fix_dur": "fixation", "target_delay": "target_delay", "rew_delay": "reward_delay"}
    return _motion({file: files[f"rs_{file}.mat"] for file in "bn"}, names)


def palmer(files: Files, part: str, attrs: Attrs) -> xr.Dataset:
    """Direction of random-dot motion by six people, with reaction times.

    At coherence 0 the choices in the files were drawn at random by the depositor, so they are NaN.
    """
    data = _motion({path[4:6]: file for path, file in files.items()}, {})
    return data.assign(choice=data["choice"].where(data["coherence"] != 0))


def _motion(files: dict[str, Path], more: dict[str, str]) -> xr.Dataset:
    """Files of one subject each: signed coherence, choice (1 right), reaction time."""
    frame = _vectors(files)
    # adding 0 makes -0 into 0
    coherence, choice = frame["cohs"].to_numpy() + 0.0, frame["choice"].to_numpy()
    with np.errstate(divide="ignore"):
        logsnr = 2 * np.log(np.abs(coherence))
    columns = {
        "logsnr": logsnr,
        "coherence": coherence,
        "choice": choice,
        "correct": np.where(coherence == 0, np.nan, choice == (coherence > 0)),
        "rt": frame["rt"],
    }
    return _trials(columns | {new: frame[old] for old, new in more.items()}, frame["subject"])


def drugowitsch(files: Files, part: str, attrs: Attrs) -> xr.Dataset:
    """Heading from vision, from self-motion or from both, by seven people, with reaction times."""
    frame = _vectors({path[9:10]: file for path, file in files.items()})
    heading, choice = frame["oris"].to_numpy(), frame["choice"].to_numpy()
    columns = {
        "logsnr": 2 * np.log(np.abs(np.sin(np.deg2rad(heading)))),
        "heading": heading,
        "coherence": frame["cohs"],
        "modality": np.array(["", "visual", "vestibular", "both"])[frame["mods"].astype(int)],
        "vestibular": (frame["mods"] > 1).astype(float),
        "choice": choice,
        "correct": choice == (heading > 0),
        "rt": frame["rt"],
    }
    return _trials(columns, frame["subject"])


def adler(files: Files, part: str, attrs: Attrs) -> xr.Dataset:
    """Category of an orientation and confidence, at six reliabilities or three cue validities.

    ``choice`` and ``category`` are 0 (narrow, or turned to negative angles) or 1.

    Raises:
        DataError: A column is missing, or holds what it cannot: the values are named.
    """
    names = {
        "Subj_idx": "subject",
        "subject_name": "subject",
        "Stimulus": "category",
        "stim_category": "category",
        "Response": "choice",
        "resp_category": "choice",
        "Confidence": "confidence",
        "resp_confidence": "confidence",
        "RT_decConf": "rt",
        "resp_rt": "rt",
        "resp_rtConf": "rt_confidence",
        "Orientation": "orientation",
        "stim_orientation": "orientation",
        "stim_reliability": "contrast",
        "stim_cue_validity": "cue_validity",
        "Difficulty": "stimulus_level",
        "Task": "task",
        "session_start_time": "session",
    }
    (file,) = files.values()
    frame = _table(file).rename(columns=names)
    frame = frame[[name for name in frame if name in {"task", *names.values()}]]
    if missing := {"category", "choice", "confidence", "orientation", "rt"} - set(frame):
        raise DataError(f"{file.name} has no column of {', '.join(sorted(missing))}")
    for name in ADLER.keys() & set(frame):
        found = set(frame[name])
        if not any(found <= set(allowed) for allowed in ADLER[name]):
            wanted = " or ".join(map(str, ADLER[name]))
            raise DataError(f"{file.name} holds {name} {sorted(found)}, wanted {wanted}")
    tilt = np.abs(np.asarray(frame["orientation"], dtype=float))
    if not (tilt <= 90).all():
        row = int(np.flatnonzero(~(tilt <= 90))[0])
        raise DataError(
            f"{file.name}, row {row + 2}: the orientation is {tilt[row]:g} from 0, wanted degrees "
            "up to 90"
        )
    for name in ("category", "choice"):
        # coded 1, 2 or -1, 1
        frame[name] = (frame[name] == frame[name].max()).astype(float)
    frame["correct"] = (frame["choice"] == frame["category"]).astype(float)
    if "contrast" in frame:
        frame["logsnr"] = 2 * np.log(frame["contrast"])
    return _trials({str(k): v for k, v in frame.items() if k != "subject"}, frame["subject"])


def waskom(files: Files, part: str, attrs: Attrs) -> xr.Dataset:
    """One to five samples of contrast, then a choice; the evidence in every sample is known.

    ``pulse_llr`` [trial, pulse] is in nats (the file has base 10) and NaN after the last sample.
    """
    trials, pulses = _table(files["trial_data.csv"]), _table(files["pulse_data.csv"])
    key = ["subject", "timing", "session", "run", "trial"]
    row = trials.set_index(key).index.get_indexer(pulses.set_index(key).index)
    wide = {}
    for old, new in {
        "pulse_llr": "pulse_llr",
        "pulse_time": "pulse_time",
        "gap_dur": "gap",
    }.items():
        wide[new] = np.full((len(trials), 5), np.nan)
        wide[new][row, pulses["pulse"] - 1] = pulses[old]
    wide["pulse_llr"] *= np.log(10)
    columns = {
        "logsnr": np.log(trials["pulse_count"]),
        "target": trials["target"],
        "choice": trials["response"],
        "correct": trials["correct"],
        "pulse_count": trials["pulse_count"],
        "timing": trials["timing"],
        "session": trials["session"],
        "run": trials["run"],
        "serial": trials["trial"],
        "duration": trials["trial_dur"],
        "wait": trials["wait_pre_stim"],
    }
    data = _trials(columns, trials["subject"])
    return data.assign({name: (("trial", "pulse"), values) for name, values in wide.items()})


def _vectors(files: dict[str, Path]) -> pd.DataFrame:
    """MATLAB files of equally long vectors, one subject each, below one another."""
    frames = []
    for subject, file in files.items():
        content = scipy.io.loadmat(file, squeeze_me=True)
        # some are big-endian
        vectors = {k: v.astype(float) for k, v in content.items() if not k.startswith("__")}
        frames.append(pd.DataFrame(vectors).assign(subject=subject))
    return pd.concat(frames, ignore_index=True)


def _trials(columns: Mapping[str, ArrayLike], subject: ArrayLike) -> xr.Dataset:
    """Columns along trial; answers as floats, since NaN stands for a missing one; text as text."""
    answers = ("choice", "correct", "confidence", "rt")
    data = xr.Dataset(coords={"subject": ("trial", np.asarray(subject, dtype=str))})
    for name, values in columns.items():
        text = pd.api.types.is_string_dtype(values)
        kind = str if text else float if name in answers else None
        data[name] = ("trial", np.asarray(values, dtype=kind))
    return data


def _table(path: Path, **options: object) -> pd.DataFrame:
    return cast(pd.DataFrame, pd.read_csv(path, **options))  # pyright: ignore


DECODERS: dict[str, Callable[[Files, str, Attrs], xr.Dataset]] = {
    "grasshopper-receptor": grasshopper,
    "geirhos2018-degraded-objects": geirhos2018,
    "roitman2002-monkey-rdm": roitman_monkeys,
    "roitman2002-lip-spikes": roitman_spikes,
    "palmer2005-human-rdm": palmer,
    "drugowitsch2014-visual-vestibular": drugowitsch,
    "adler2018-orientation-confidence": adler,
    "waskom2018-contrast-pulses": waskom,
    "brody-rat-t103-clicks": brody_clicks,
    "cowley2023-macaque-v4": cowley,
    "cifar10": cifar10,
    "cifar10h": cifar10h,
    "digits": digits,
}
