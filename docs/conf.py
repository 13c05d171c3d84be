"""Sphinx configuration: MyST pages, executed where they hold code, errors fail the build."""

import neurodiff

project = "neurodiff"
author = "The neurodiff founders"
copyright = "2026, The neurodiff founders"
release = neurodiff.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
html_theme = "pydata_sphinx_theme"
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath", "amsmath"]
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
