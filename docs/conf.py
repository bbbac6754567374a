"""Sphinx configuration."""

from rbnorm import __version__

project = "rbnorm"
copyright = "the rbnorm authors"
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]
myst_enable_extensions = ["dollarmath", "amsmath"]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_google_docstring = True
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"rbnorm {release}"
