"""The folder of a run: what may be one, what is left half-written, and what results depend on."""

import os
from pathlib import Path

import neurodiff


def check(out: Path, resume: bool) -> None:
    """Refuse a run folder that cannot be used; nothing is written."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file, wanted a folder for the run: name another with --out")
    if not out.exists() or not any(out.iterdir()):
        if resume and not out.exists():
            raise ValueError(f"{out} does not exist, so there is nothing to resume")
    elif not resume:
        raise ValueError(
            f"{out} is not empty: name another folder with --out, or go on there with --resume"
        )
    elif not (out / "fits").is_dir():
        raise ValueError(f"{out} holds something that is not a run: name another folder with --out")
    there = next(p for p in (out / "fits", out, *out.absolute().parents) if p.exists())
    if not os.access(there, os.W_OK | os.X_OK) or not there.is_dir():
        raise ValueError(f"cannot write to {there}: permission denied; name another with --out")


def make(out: Path) -> Path:
    """The folder of fits, without what a killed run has left half-written."""
    try:
        (out / "fits").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"cannot write to {out}: {error.strerror}; name another with --out"
        ) from None
    sweep(out)
    return out / "fits"


def sweep(out: Path) -> None:
    """Remove files that were being written when a run ended."""
    for path in (*out.glob("*.part"), *(out / "fits").glob("*.part")):
        path.unlink(missing_ok=True)


def write(path: Path, text: str) -> None:
    """A file that is whole, or not there."""
    aside = path.with_name(path.name + ".part")
    aside.write_text(text)
    aside.replace(path)


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    import platform
    from importlib.metadata import version

    names = ["torch", "pyro-ppl", "numpy", "xarray", "arviz-stats"]
    return {
        "neurodiff": neurodiff.__version__,
        "python": platform.python_version(),
        **{name: version(name) for name in names},
    }
