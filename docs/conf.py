# SPDX-License-Identifier: Apache-2.0
"""The documentation site: ``python3 dev.py docs`` builds it, without a network."""

import os
import sys
import warnings
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "_ext"))
os.environ.setdefault("JAX_PLATFORMS", "cpu")
warnings.filterwarnings("ignore", category=DeprecationWarning)

import braintrace  # noqa: E402

project = "braintrace"
project_copyright = "the braintrace authors, Apache-2.0"
version = release = braintrace.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
extensions += ["mathml", "shapes", "signatures", "usage"]  # in _ext
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]

# Pages are read in a repository, too: headings are link targets there, and dollars are mathematics.
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

# Docstrings have sections as numpy has them.
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_preprocess_types = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
add_module_names = False

# Equations are MathML, which browsers draw themselves: no script, no font from elsewhere.
html_math_renderer = "mathml"
html_theme = "furo"
html_title = f"braintrace {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {"footer_icons": [], "navigation_with_keys": True}
pygments_style = "friendly"
pygments_dark_style = "github-dark"
