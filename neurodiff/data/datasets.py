"""Published data sets by name: ``load("name")`` or ``load("name/part")``.

A card (``datasets/<name>.toml``) states what was recorded, by whom, under which licence, how the
stimulus maps to logsnr, and the address and SHA-256 of every file. A file is looked for in
``$NEURODIFF_DATA/<name>/``, then beside its card, then in the Python package that ships it if there
is one, then in the download cache, and then fetched. Wherever it comes from, its SHA-256 must be
the card's.
"""

import difflib
import hashlib
import importlib.util
import os
import sys
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import xarray as xr

from neurodiff.data.schema import DataError, check, data_hash

MIRROR = "NEURODIFF_DATA"


@dataclass(frozen=True)
class File:
    """One file of a data set: path below its folder, content hash, size, address, and part.

    ``member`` names the file inside the archive at ``url``, where it has no address of its own.
    """

    path: str
    sha256: str
    bytes: int
    url: str = ""
    part: str = ""
    member: str = ""


@dataclass(frozen=True)
class Card:
    """A data set's card.

    ``variables`` maps a name to its ``units`` and ``long_name``; ``attrs`` holds the numbers and
    texts that a loaded data set carries along; ``package`` is the Python package that ships the
    files, and ``extra`` the extra that installs it. ``weights``: the file is a trained denoiser.
    """

    name: str
    title: str
    what: str
    species: str
    licence: str
    citation: str
    doi: str
    logsnr: str
    files: tuple[File, ...]
    parts: tuple[str, ...] = ()
    variables: dict[str, dict[str, str]] | None = None
    attrs: dict[str, str | int | float] | None = None
    package: str = ""
    extra: str = ""
    weights: bool = False

    def part_files(self, part: str) -> tuple[File, ...]:
        """The files of one part: those that name it, or all where the set has no parts."""
        return tuple(file for file in self.files if not part or file.part == part)


def cards() -> list[str]:
    """The names of all data sets that have a card.

    >>> "grasshopper-receptor" in cards()
    True
    """
    return sorted(path.stem for path in _folder().glob("*.toml"))


@cache
def card(name: str) -> Card:
    """The card of a data set, by its name without the part.

    Raises:
        DataError: the name is unknown; the message lists the nearest known ones.

    >>> card("grasshopper-receptor").parts
    ('1', '2')
    """
    path = _folder() / f"{name}.toml"
    if name not in cards():
        near = difflib.get_close_matches(name, cards(), n=3, cutoff=0.4)
        raise DataError(
            f"no data set is called {name!r}"
            + (f"; did you mean {' or '.join(near)}?" if near else "")
            + f" Known: {', '.join(cards())}"
        )
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    files = tuple(File(**file) for file in content.pop("files"))
    return Card(files=files, parts=tuple(content.pop("parts", ())), **content)


def load(name: str) -> Any:  # noqa: ANN401  # a Dataset, but for weights
    """Load a published data set, checked; or a trained denoiser, if that is what the card is of.

    Args:
        name: the name of a card, with ``/part`` where the data set has parts.

    Returns:
        One data set (see :mod:`neurodiff.data.schema`); its attributes hold the licence, citation,
        doi and the hash of its content. Of a card of weights a
        :class:`~neurodiff.diffusion.denoiser.Denoiser`.

    Raises:
        DataError: unknown name or part, no loader yet, or files that are missing or altered.
    """
    from neurodiff.data import decode

    base, _, part = name.partition("/")
    found = card(base)
    _check_part(found, part)
    if found.weights:
        from neurodiff.diffusion.saved import load as denoiser

        return denoiser(fetch(name)[0])
    decoder = decode.DECODERS.get(base)
    if decoder is None:
        raise DataError(
            f"{base!r} has a card but no loader yet: its files can be fetched with "
            f"neurodiff.data.datasets.fetch({base!r}) and read by hand. Loaders exist for: "
            f"{', '.join(decode.DECODERS)}"
        )
    paths = [file.path for file in found.part_files(part)]
    data = decoder(dict(zip(paths, fetch(name), strict=True)), part, found.attrs or {})
    return _finish(data, found, name)


def fetch(name: str) -> list[Path]:
    """Make sure that the files of a data set (or of ``name/part``) are here, and return them.

    Raises:
        DataError: a file is neither here nor reachable, or its content is not the card's.
    """
    base, _, part = name.partition("/")
    found = card(base)
    if part:
        _check_part(found, part)
    return [_fetch_file(found, file) for file in found.part_files(part)]


def _finish(data: xr.Dataset, found: Card, name: str) -> xr.Dataset:
    """Attach what the card says and check."""
    for variable in data.variables:
        data[variable].attrs = (found.variables or {})[str(variable)] | data[variable].attrs
    about = {
        "name": name,
        "title": found.title,
        "species": found.species,
        "licence": found.licence,
        "citation": found.citation,
        "doi": found.doi,
        "logsnr_mapping": found.logsnr,
    }
    data.attrs = about | (found.attrs or {}) | data.attrs
    data.attrs["data_hash"] = data_hash(data)
    return check(data, name)


def _check_part(found: Card, part: str) -> None:
    if part in found.parts or (not part and not found.parts):
        return
    if not found.parts:
        raise DataError(f"{found.name!r} has no parts; say load({found.name!r})")
    near = difflib.get_close_matches(part, found.parts, n=1) or found.parts[:1]
    got = f"has no part {part!r}" if part else "has parts"
    raise DataError(
        f"{found.name!r} {got}; say load('{found.name}/{near[0]}'). Parts: {', '.join(found.parts)}"
    )


def _folder() -> Path:
    """The folder of cards: beside the package in a checkout, else inside the installed package."""
    package = Path(__file__).resolve().parents[1]
    beside = package.parent / "datasets"
    # another package may be called datasets, and an editable install may hold a stale copy
    return beside if (beside / "grasshopper-receptor.toml").is_file() else package / "datasets"


def _fetch_file(found: Card, file: File) -> Path:
    mirror = os.environ.get(MIRROR)
    if mirror and (path := Path(mirror) / found.name / file.path).is_file():
        return _verify(path, file, f"the folder in ${MIRROR}")
    if (path := _folder() / file.path).is_file():
        return _verify(path, file, "beside its card")
    if found.package:
        return _verify(_packaged(found, file), file, f"the package {found.package}")
    return _download(found, file)


def _packaged(found: Card, file: File) -> Path:
    # find_spec does not import the package
    spec = importlib.util.find_spec(found.package)
    roots = spec.submodule_search_locations if spec else None
    for root in roots or ():
        if (path := Path(root) / file.path).is_file():
            return path
    raise DataError(
        f"{found.name!r} comes with the Python package {found.package!r}, which is "
        f"{'installed without ' + file.path if roots else 'not installed'}: "
        f"pip install 'neurodiff[{found.extra}]'"
    )


def _download(found: Card, file: File) -> Path:
    import pooch
    import requests

    folder = Path(pooch.os_cache("neurodiff")) / found.name
    if (path := folder / file.path).is_file() and _sha256(path) == file.sha256:
        return path
    archive = bool(file.member)
    try:
        got = pooch.retrieve(
            file.url,
            known_hash=None if archive else f"sha256:{file.sha256}",
            fname=Path(file.url).name if archive else file.path,
            path=folder,
            processor=pooch.Untar(members=[file.member]) if archive else None,
            progressbar=sys.stderr.isatty(),
        )
    except (requests.RequestException, OSError) as error:
        raise DataError(
            f"{found.name}/{file.path} is not on this machine and cannot be fetched from "
            f"{file.url} ({type(error).__name__}): go online, or set {MIRROR} to a folder that "
            f"holds {found.name}/{file.path}"
            + (f" ({MIRROR} is {os.environ[MIRROR]!r})" if os.environ.get(MIRROR) else "")
        ) from error
    except ValueError as error:
        raise DataError(f"{file.url} no longer holds the file of the card: {error}") from error
    return _verify(Path(got[0] if archive else got), file, file.url)


def _verify(path: Path, file: File, where: str) -> Path:
    got = _sha256(path)
    if got != file.sha256:
        raise DataError(
            f"{path} from {where} has sha256 {got[:12]}… ({path.stat().st_size} bytes); wanted "
            f"{file.sha256[:12]}… ({file.bytes} bytes): the file was altered or cut short; "
            "replace it"
        )
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
