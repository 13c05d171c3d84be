"""Every card, where files are looked for, and what is said when they are not found."""

import hashlib
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from neurodiff.data import datasets
from neurodiff.data.schema import DataError


@pytest.mark.parametrize("name", datasets.cards())
def test_card(name):
    card = datasets.card(name)
    assert card.name == name
    for text in (card.title, card.what, card.species, card.licence, card.citation, card.logsnr):
        assert text
    paths = [file.path for file in card.files]
    assert len(set(paths)) == len(paths) > 0
    for file in card.files:
        assert len(bytes.fromhex(file.sha256)) == 32
        assert file.bytes > 0
        beside = (datasets._folder() / file.path).is_file()
        assert card.package or beside or file.url.startswith("https://")
        assert (file.part in card.parts) if card.parts else not file.part


def test_number_of_files():
    number = {name: len(datasets.card(name).files) for name in datasets.cards()}
    assert number["geirhos2018-degraded-objects"] == 88
    assert number["geirhos2021-shape-texture"] == 42
    assert sum(number.values()) == 178


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in datasets.cards()
        if not datasets.card(name).package and not datasets.card(name).weights
    ],
)
def test_mirror_has_the_files_of_the_card(name):
    folder = Path(os.environ.get(datasets.MIRROR, "")) / name
    card = datasets.card(name)
    here = [file for file in card.files if (folder / file.path).is_file()]
    if datasets.MIRROR not in os.environ or not here:
        pytest.skip(f"the files of data set {name} are not in ${datasets.MIRROR}")
    for file in here:
        content = (folder / file.path).read_bytes()
        assert len(content) == file.bytes
        assert hashlib.sha256(content).hexdigest() == file.sha256


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("grasshoper-receptor", "did you mean grasshopper-receptor"),
        ("nothing", "Known: adler2018"),
        ("grasshopper-receptor", "has parts; say load('grasshopper-receptor/1')"),
        ("grasshopper-receptor/3", "no part '3'"),
        ("geirhos2018-degraded-objects/noises", "say load('geirhos2018-degraded-objects/noise')"),
        ("palmer2005-human-rdm/ah", "has no parts; say load('palmer2005-human-rdm')"),
        ("geirhos2021-shape-texture/edge", "has a card but no loader yet"),
    ],
)
def test_wrong_name(name, message):
    with pytest.raises(DataError) as error:
        datasets.load(name)
    assert message in str(error.value)


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """No mirror, an empty cache, and no way out."""
    monkeypatch.delenv(datasets.MIRROR, raising=False)
    monkeypatch.setattr("pooch.os_cache", lambda _: tmp_path / "cache")
    for proxy in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")
    return tmp_path


def test_offline(alone, monkeypatch):
    with pytest.raises(DataError) as error:
        datasets.load("palmer2005-human-rdm")
    assert "palmer2005-human-rdm/phs_ah.mat is not on this machine" in str(error.value)
    assert "go online, or set NEURODIFF_DATA to a folder that holds" in str(error.value)
    monkeypatch.setenv(datasets.MIRROR, str(alone))
    with pytest.raises(DataError, match="NEURODIFF_DATA is "):
        datasets.load("palmer2005-human-rdm")


def test_package_not_installed(alone, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(DataError, match=r"not installed: pip install 'neurodiff\[demo\]'"):
        datasets.load("grasshopper-receptor/1")


def test_altered_file_is_refused(alone, monkeypatch):
    path = alone / "palmer2005-human-rdm" / "phs_ah.mat"
    path.parent.mkdir()
    path.write_bytes(b"altered")
    monkeypatch.setenv(datasets.MIRROR, str(alone))
    with pytest.raises(DataError, match=r"\(7 bytes\); wanted 43d35d8a76c8… \(2674 bytes\)"):
        datasets.load("palmer2005-human-rdm")


@pytest.fixture
def server(tmp_path):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    (tmp_path / "served").mkdir()
    handler = partial(Quiet, directory=str(tmp_path / "served"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", tmp_path / "served"
        running.shutdown()


def test_fetch_and_cache(alone, server, monkeypatch):
    address, folder = server
    monkeypatch.delenv("http_proxy")
    content = b"what was recorded"
    (folder / "a.csv").write_bytes(content)
    (folder / "batch").mkdir()
    (folder / "batch" / "one").write_bytes(content)
    shutil.make_archive(str(folder / "all"), "gztar", folder, "batch")
    digest = hashlib.sha256(content).hexdigest()
    files = (
        datasets.File("a.csv", digest, len(content), f"{address}/a.csv"),
        datasets.File("one", digest, len(content), f"{address}/all.tar.gz", member="batch/one"),
    )
    monkeypatch.setattr(
        datasets,
        "card",
        lambda name: datasets.Card(name, "t", "w", "s", "l", "c", "d", "λ", files),
    )
    for _ in range(2):  # fetched, then from the cache
        assert [path.read_bytes() for path in datasets.fetch("x")] == [content, content]
    (folder / "a.csv").write_bytes(b"altered")
    (alone / "cache" / "x" / "a.csv").unlink()
    with pytest.raises(DataError, match="no longer holds the file of the card"):
        datasets.fetch("x")


def test_wheel_holds_the_cards(tmp_path):
    for module in ("build", "hatchling"):
        pytest.importorskip(module)
    root = Path(__file__).parents[2]
    make = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path)]
    subprocess.run([*make, str(root)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as stream:
        stream.extractall(tmp_path / "site")
    code = (
        "import neurodiff, neurodiff.data.datasets as d; print(neurodiff.__file__);"
        "print(len(d.cards()), len(d.card('geirhos2018-degraded-objects').files))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    where, numbers = done.stdout.splitlines()
    assert where.startswith(str(tmp_path / "site"))
    assert numbers == f"{len(datasets.cards())} 88"
