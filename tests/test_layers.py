"""Imports go downwards only, Pyro stays in one package, and a bare import loads nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import neurodiff

PACKAGE = Path(neurodiff.__file__).parent
# a layer may import itself and what stands before it in its chain
CHAIN = ["diffusion", "data", "perception", "inference", "plot", "report", "cli"]
MAY_IMPORT = {layer: set(CHAIN[: i + 1]) for i, layer in enumerate(CHAIN)}
MAY_IMPORT["control"] = {"diffusion", "control"}
# what a module at the top belongs to
BELONGS = {
    "plot": "plot",
    "answers": "plot",
    "panels": "plot",
    "plot_sharing": "plot",
    "summary": "plot",
    "timing": "plot",
    "digits": "report",
    "page": "report",
    "report": "report",
    "training": "cli",
    "cli": "cli",
    "cli_compare": "cli",
    "cli_datasets": "cli",
    "runs": "cli",
    "terminal": "cli",
}
FILES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def layer_of(parts):
    """The layer of a dotted module below neurodiff, or None for the package itself."""
    if not parts:
        return None
    return BELONGS.get(parts[0], parts[0])


def imports(path):
    """Dotted names that a file imports, function bodies included, TYPE_CHECKING blocks not."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_downwards(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    layer = layer_of(parts)
    assert layer in MAY_IMPORT, f"{path} belongs to no layer"
    for name in imports(path):
        root, *rest = name.split(".")
        if root == "neurodiff" and rest and layer_of(rest) in MAY_IMPORT:
            assert layer_of(rest) in MAY_IMPORT[layer], f"{path.name} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_pyro_stays_in_inference(path):
    pyro = [name for name in imports(path) if name.split(".")[0] == "pyro"]
    assert not pyro or path.parent.name == "inference"


def test_the_parser_sees_imports_in_functions(tmp_path):
    file = tmp_path / "module.py"
    file.write_text("def f():\n    from pyro import sample\n")
    assert list(imports(file)) == ["pyro.sample"]


def test_import_is_lazy():
    code = (
        "import sys, neurodiff; neurodiff.control; heavy = {'torch', 'pyro', 'xarray', 'gymnasium',"
        " 'stable_baselines3'}; print(sorted(heavy & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_every_public_name_resolves():
    for name in neurodiff.__all__:
        assert getattr(neurodiff, name) is not None


def test_sub_modules_are_reached_by_name():
    assert neurodiff.diffusion.parameterization.__name__ == "neurodiff.diffusion.parameterization"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = neurodiff.diffusion.nothing
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = neurodiff.nothing
