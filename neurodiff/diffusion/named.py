"""Where a string selects: is the name known, and does it read these arguments?"""

import difflib
import inspect
from collections.abc import Callable, Mapping


def check_name(
    kind: str,
    known: Mapping[str, Callable[..., object]],
    name: str,
    arguments: Mapping[str, object],
) -> None:
    """Refuse a name that is not in ``known``, or arguments that are not among its defaults.

    Raises:
        ValueError: for an unknown name; lists all of them and the nearest.
        TypeError: for an argument that this one does not read; lists those it does.

    >>> check_name("number", {"one": abs, "two": abs}, "on", {})
    Traceback (most recent call last):
    ValueError: unknown number 'on'; did you mean 'one'? Known: one, two
    """
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"unknown {kind} {name!r}; {hint}Known: {', '.join(known)}")
    parameters = inspect.signature(known[name]).parameters.values()
    accepted = [p.name for p in parameters if p.default is not p.empty]
    for argument in arguments:
        if argument not in accepted:
            takes = f"it takes {', '.join(accepted)}" if accepted else "it takes none"
            raise TypeError(f"{kind} {name!r} has no argument {argument!r}; {takes}")
