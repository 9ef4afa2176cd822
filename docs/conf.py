"""Sphinx settings. Both languages, each page with a link to the other:

    sphinx-build -W --keep-going -c docs nbs _docs/html
    sphinx-build -W --keep-going -c docs -D language=ko nbs _docs/html/ko

The messages to translate: sphinx-build -b gettext -c docs nbs _gettext
"""
import shutil, sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

project, html_title, root_doc = "llmwatch_course", "llmwatch_course", "index"
author = "The llmwatch_course authors"
extensions = ["myst_nb", "sphinx_design", "sphinx_copybutton", "library"]
exclude_patterns = ["_*", "**/_*", "**/.ipynb_checkpoints", "**/95_init.ipynb"]
nb_custom_formats = {".ipynb": "nbdev_reader.read"}
nb_execution_mode = "off"                                  # pages show the outputs saved in the notebooks
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
html_theme = "sphinx_book_theme"
html_theme_options = {"article_header_end": ["language.html", "article-header-buttons.html"]}
html_static_path, html_css_files, templates_path = ["_static"], ["course.css"], ["_templates"]
locale_dirs, gettext_compact = [str(HERE/"locale")], "course"
add_module_names = toc_object_entries = False              # the library's pages: short names, and modules alone in the margin
python_use_unqualified_type_names, html_domain_indices, smartquotes = True, False, False
mathjax_path = "vendor/tex-svg.js"                         # local copies: pages work with no network
nb_ipywidgets_js = {"vendor/require.js": {}, "vendor/embed-amd.js": {"data-jupyter-widgets-cdn": ""}}

# The three scripts come from npm (tests/browser/package.json) and are copied when they are there; without them pages read well but formulas stay as text.
MODULES, VENDOR = HERE.parent/"tests/browser/node_modules", HERE/"_static/vendor"
for name in ("mathjax/es5/tex-svg.js", "requirejs/require.js", "@jupyter-widgets/html-manager/dist/embed-amd.js"):
    if (MODULES/name).is_file():
        VENDOR.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(MODULES/name, VENDOR/Path(name).name)
