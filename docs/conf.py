"""Sphinx settings. `sphinx-build -W --keep-going docs docs/_build` builds the pages."""

import importlib.metadata
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import generated_pages  # noqa: E402

project = "sigma_jax"
author = "The sigma_jax authors"
copyright = author
release = importlib.metadata.version("sigma_jax")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

html_theme = "sphinx_book_theme"
html_title = "sigma_jax"
html_theme_options = {"show_toc_level": 2, "use_download_button": False}
copybutton_prompt_text = "$ "

default_role = "literal"
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "signature"
# The shape strings of jaxtyping as they stand in the code: Float[Array, 'B T'].
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 80
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False


def setup(app):
    """Writes the generated pages, and reads docstrings by the conventions of this package."""
    generated_pages.write(Path(__file__).parent / "generated")
    # Before napoleon, which has the default priority of 500.
    app.connect("autodoc-process-docstring", generated_pages.docstring_to_rst, priority=400)
    app.connect("autodoc-process-signature", generated_pages.short_signature)
