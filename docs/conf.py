"""The documentation site: ``python -m sphinx -W --keep-going -n docs build/docs`` with the extra `docs`."""

import os
import sys
from pathlib import Path

import numformer

HERE = Path(__file__).resolve().parent
# Of the notebooks' processes: they import the same numformer, and threads that wait do not spin beside whatever runs.
os.environ["PYTHONPATH"] = str(Path(numformer.__file__).resolve().parents[1])
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
sys.path.insert(0, str(HERE / "_ext"))

project = "numformer"
author = "the authors of numformer"
copyright = author
version = release = numformer.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.viewcode",
    "numpydoc",
    "myst_nb",
    "mathml",
]
exclude_patterns = ["_ext", "_templates"]
templates_path = ["_templates"]
html_static_path = ["_static"]
html_css_files = ["site.css"]

# ---- the reference
default_role = "autolink"
autosummary_generate = True
autodoc_typehints = "none"  # docstrings say shapes and dtypes, which types do not
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
numpydoc_show_class_members = False  # the template of a class lists them
numpydoc_class_members_toctree = False
numpydoc_xref_param_type = False
nitpick_ignore_regex = [
    # Of other projects: the site is built without a network, so there is no inventory of theirs.
    (r"py:.*", r"(numpy|np|pandas|ml_dtypes|matplotlib|safetensors|rich|collections|pathlib|types|typing|os)\..*"),
    # Arguments and attributes: in docstrings one pair of backticks means them too, where it means no function.
    (r"py:(obj|class|data|func|meth|attr|exc)", r"\w+"),
    # Bases that are no public names.
    (r"py:class", r"numformer\.\w+(\.\w+)+"),
    (r"py:class", r"numformer\._core\.\w+"),
]

suppress_warnings = [
    "ref.python",  # a word in backticks that several public classes have for an attribute
    "toc.not_included",  # a page without a place in the contents yet
]

# ---- pages and notebooks
source_suffix = {".rst": "restructuredtext", ".md": "myst-nb"}
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True

# ---- looks
highlight_language = "none"  # of drawings in docstrings
html_theme = "pydata_sphinx_theme"
html_title = "numformer"
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "logo": {"text": "numformer"},
    "show_nav_level": 1,
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
    "header_links_before_dropdown": 5,
    "show_prev_next": True,
    "footer_start": ["copyright"],
    "footer_end": ["theme-version"],
    "pygments_light_style": "tango",
    "pygments_dark_style": "github-dark",
}
html_sidebars = {page: [] for page in ("index", "changelog", "quickstart", "reliability", "security")}
