"""The command line: every command is one call of the library, with its results printed.

Exit codes: 0, done; 1, done but for fits that failed, or cut short by a worker's death or a loss
that is not finite; 2, input that cannot be used; 130, Ctrl-C. Libraries load inside the commands,
so that help comes at once.
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, CycloptsError, Parameter

from neurodiff import __version__
from neurodiff.cli_compare import compare
from neurodiff.cli_datasets import datasets
from neurodiff.terminal import next_run, show_table, status
from neurodiff.training import train_images

if TYPE_CHECKING:
    from concurrent.futures import Executor

Names = Annotated[list[str] | None, Parameter(consume_multiple=True)]

app = App(
    name="neurodiff",
    version=f"neurodiff {__version__}",
    help="At which signal-to-noise ratio does an observer, animal or neuron stop denoising?",
    suppress_keyboard_interrupt=False,
)
app.command(datasets)
app.command(compare)
app.command(train_images, name="train")


def main(tokens: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        The exit code.

    >>> main(["fit", "no-such.csv", "--model", "threshold"])
    2
    """
    from neurodiff.inference.study import Unfinished

    try:
        code = app(tokens, exit_on_error=False, result_action="return_value")
        if code and isinstance(code, str):
            print(code)
        return code if isinstance(code, int) else 0
    except CycloptsError:  # printed by cyclopts
        return 2
    except KeyboardInterrupt:
        return _complain("stopped; what is done is kept: go on with --resume", 130)
    except (Unfinished, FloatingPointError) as error:
        return _complain(str(error), 1)
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError) as error:
        return _complain(str(error), 2)


def _complain(message: str, code: int) -> int:
    print(f"neurodiff: {message}", file=sys.stderr)
    return code


@app.command
def demo(*, images: bool = False, out: Path | None = None, seed: int = 0, workers: int = 2) -> int:
    """Which weighting does an auditory receptor of a grasshopper use? Two recordings, a minute.

    Args:
        images: Instead: which weighting did a simulated observer of digits in noise use?
        out: Run folder; by default the next number under runs/. With --images one that was cut
            short goes on.
        seed: The same seed gives the same result.
        workers: Processes; of digits there is one.
    """
    from neurodiff.data.datasets import load
    from neurodiff.inference.hypotheses import plan
    from neurodiff.inference.tasks import common_task, task_of

    if images:
        from neurodiff.digits import demonstrate

        out = out or next_run()
        with status("simulating observers of digits, and fitting them"):
            share = demonstrate(out, seed=seed)
        print("share of observers of a hypothesis (row) for whom each has most evidence")
        numbers = [str(i) for i in range(1, len(share) + 1)]
        rows = [f"{n} {name}" for n, name in zip(numbers, share.index, strict=True)]
        print(share.set_axis(numbers, axis=1).set_axis(rows, axis=0).to_string(float_format="%.2f"))
        print(f"figure: {out / 'figures' / 'confusion.png'}")
        return 0
    with status("loading"):
        parts = [load(f"grasshopper-receptor/{part}") for part in ("1", "2")]
    task = common_task([task_of(part) for part in parts])
    rows = plan(task, ("none", "power-filter"))
    out = out or next_run()
    return _run(parts, rows, task, out, workers, drawn=True, seed=seed)


@app.command
def fit(
    data: str,
    /,
    *,
    model: str,
    weighting: Names = None,
    law: Names = None,
    choices: int | None = None,
    guess: float | None = None,
    front_end: Names = None,
    bound: Names = None,
    deadline: float | None = None,
    evidence: Path | None = None,
    observers: Literal["human", "network", "all"] = "human",
    by: str | None = None,
    method: Literal["laplace", "svi", "nuts"] = "laplace",
    seed: int = 0,
    device: str = "auto",
    workers: int = 1,
    out: Path | None = None,
    resume: bool = False,
) -> int:
    """Fit hypotheses to data, with their controls, and compare them.

    Args:
        data: A data set's name, name/part, a file, or a quoted pattern of files ('sessions/*.nc').
        model: The kind of stopping: threshold, limited, bounded (choices and reaction times), or
            averaged and stopped, which answer with a label and need --evidence.
        weighting: Named weightings, each with its free-scale rival; without --weighting and --law,
            a default set of both.
        law: Stopping laws to learn.
        choices: Number of alternatives, which fixes the guess rate at 1/N.
        guess: The guess rate itself. Without either, and unless the data say, it has a prior.
        front_end: none, power-filter, internal-noise; several make several comparisons.
        bound: Of the bounded kind: constant, exponential, linear, weibull, spline, or with another
            drift leak+weibull, urgency+weibull, power+weibull, variable+weibull; of headings
            heading+constant, heading-free+constant, steady-heading+weibull and the like. Or a rival
            of bounds: time-stop, snr-stop, race, deadline (beside a constant bound).
        deadline: Seconds after which there is no answer, which is data; a missing time is one.
        evidence: A table of evidence (netCDF) of the stimuli that the trials name in 'shown'.
        observers: Whom to fit where a data set holds people and networks.
        by: A coordinate (subject) whose values get hierarchical parameters; predictions are then
            scored on values left out.
        method: How posteriors are found.
        seed: The same seed gives the same result.
        device: cpu, cuda, cuda:N or auto.
        workers: Processes.
        out: Run folder, new or empty; by default the next number under runs/.
        resume: Go on in a run folder: fits that are there are kept.
    """
    from neurodiff.inference.nuts import NUTS
    from neurodiff.inference.svi import SVI
    from neurodiff.runs import found_again, read_for

    read = {
        "data": found_again(data), "model": model, "choices": choices, "guess": guess,
        "observers": observers, "deadline": deadline, "front_end": front_end,
        "evidence": None if evidence is None else str(evidence.absolute()),
        "weighting": weighting, "law": law, "bound": bound,
    }  # fmt: skip
    with status("reading"):
        parts, unread, rows, task = read_for(read | {"data": data})
    how = {"laplace": None, "svi": SVI(), "nuts": NUTS()}[method]
    options = {"method": how, "by": by, "seed": seed, "device": device, "resume": resume}
    options["read"] = read
    out = out or next_run()
    code = _run(parts, rows, task, out, workers, unread=unread, **options)
    if observed := {part.attrs["observers"] for part in parts if "observers" in part.attrs}:
        print(f"observers: {observed.pop()} only (see --observers)")
    print(f"figures and report: neurodiff report {out}")
    return code


@app.command
def recover(
    data: str,
    /,
    *,
    model: str,
    weighting: Names = None,
    law: Names = None,
    choices: int | None = None,
    guess: float | None = None,
    front_end: str = "none",
    bound: Names = None,
    evidence: Path | None = None,
    sets: int = 300,
    seed: int = 0,
    out: Path | None = None,
) -> None:
    """Would such data give back what goes in? Simulate on their design, fit, compare with truth.

    Truths are drawn from the priors, on the unconstrained scale (logarithms of what is positive).

    Args:
        data: A data set's name, name/part or a file; its responses are not used, only its design.
        model: The kind of stopping: threshold, limited, averaged, stopped or bounded.
        weighting: Named weightings.
        law: Stopping laws; logistic, if neither is given.
        choices: Number of alternatives, which fixes the guess rate at 1/N.
        guess: The guess rate itself.
        front_end: none or internal-noise.
        bound: Of the bounded kind, as in fit; weibull, if none is given.
        evidence: A table of evidence (netCDF), of the averaged and the stopped kind.
        sets: Data sets simulated for each hypothesis.
        seed: The same seed gives the same result.
        out: A csv file for the table.
    """
    from dataclasses import replace

    from neurodiff.data.choice_rt import choice_rt
    from neurodiff.data.gather import gather
    from neurodiff.inference.calibration import recovery_table
    from neurodiff.inference.hypotheses import plan
    from neurodiff.inference.labels import attach
    from neurodiff.inference.tasks import task_of
    from neurodiff.runs import table_of

    with status("reading"):
        table = table_of(model, evidence)
        labels = choices if table is None else table.sizes["label"]
        (part, *more), _ = gather(data, labels, "all")
    if more:
        raise ValueError(f"got {1 + len(more)} parts, wanted one design: name one part or file")
    if out is not None and (out.exists() or not out.parent.is_dir()):
        raise ValueError(f"{out} exists, or its folder does not: wanted a new file in a folder")
    part = choice_rt(part) if model == "bounded" else part
    part = part if table is None else attach(part, table)
    task = task_of(part, model, choices, guess)
    plain = "; simulated and fitted without spike history" if task.history else ""
    task = replace(task, history=0)  # whose bins are not drawn one by one
    default = ["weibull"] if model == "bounded" else ["logistic"]
    learned = bound or law or ([] if weighting else default)
    rows = plan(task, [front_end], weighting or [], learned, controls=False)
    with status(f"simulating and fitting {sets} data sets for each of {len(rows)} hypotheses"):
        found = recovery_table(rows, task, part, sets, seed)
    print(found.to_string(index=False, float_format="%.3f"))
    print(f"{sets} sets, truths from the priors, unconstrained scale, seed {seed}{plain}")
    if out is not None:
        found.to_csv(out, index=False, float_format="%.4g")


@app.command
def report(folder: Path, /) -> None:
    """Draw the figures of a run folder and write report.html.

    Args:
        folder: A run folder.
    """
    if not (folder / "comparison.csv").is_file():
        raise ValueError(f"{folder} holds no comparison.csv; wanted the folder of a finished run")
    _draw(folder)


def _run(  # noqa: ANN202
    parts,  # noqa: ANN001
    rows,  # noqa: ANN001
    task,  # noqa: ANN001
    out: Path,
    processes: int,
    drawn: bool = False,
    **options,  # noqa: ANN003
):
    """A study in worker processes, its tables and summary printed, and its report if asked."""
    from neurodiff.inference.describe import describe
    from neurodiff.inference.pool import workers
    from neurodiff.inference.run_folder import sweep
    from neurodiff.inference.study import study

    command = " ".join(["neurodiff", *sys.argv[1:]])
    try:
        with workers(processes) as executor:
            table = study(parts, rows, task, out, executor=executor, command=command, **options)
            show_table(table)
            print(describe(out))
            if drawn:
                _draw(out, executor)
    finally:
        sweep(out)
    return 1 if json.loads((out / "run.json").read_text())["failed"] else 0


def _draw(out: Path, executor: "Executor | None" = None) -> None:
    from neurodiff.report import report

    with status("drawing"):
        path = report(out, executor)
    print(f"report: {path}")
