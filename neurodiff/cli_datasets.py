"""``neurodiff datasets``: the published data sets, their cards and their files."""

from cyclopts import App

datasets = App(name="datasets", help="Published data sets: list them, show a card, fetch files.")


@datasets.default
@datasets.command(name="list")
def list_cards() -> None:
    """List the data sets."""
    from neurodiff.data.datasets import card, cards

    for name in cards():
        print(f"{name:36}{card(name).title}")


@datasets.command
def show(name: str, /) -> None:
    """Show a data set's card.

    Args:
        name: Its name.
    """
    from neurodiff.data.datasets import card

    found = card(name)
    size = sum(file.bytes for file in found.files) / 1e6
    print(
        f"{found.name}: {found.title}\n\n{found.what.strip()}\n\nlogsnr: {found.logsnr.strip()}\n"
    )
    print(f"parts: {', '.join(found.parts) or 'none'}\nfiles: {len(found.files)}, {size:.1f} MB")
    print(f"licence: {found.licence}\ncite: {found.citation.strip()} doi:{found.doi}")


@datasets.command
def fetch(name: str, /) -> None:
    """Make sure that a data set's files are on this machine.

    Args:
        name: Its name, or name/part.
    """
    from neurodiff.data.datasets import fetch

    for path in fetch(name):
        print(path)
