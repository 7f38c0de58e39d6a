"""The site: ``bash docs/build.sh``."""
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'docs')]

from notebooks import write_pages  # noqa: E402

write_pages()

project = 'mmdyrep'
author = 'the authors of mmdyrep'
copyright = author
release = re.search(r"__version__ = '(.+?)'", (ROOT / 'mmdyrep' / 'version.py').read_text()).group(1)

extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon', 'sphinx.ext.viewcode',
              'sphinx_copybutton']
# the pages of notebooks are made of them
exclude_patterns = ['_build', '**.ipynb']
html_theme = 'furo'
html_title = f'mmdyrep {release}'

myst_enable_extensions = ['colon_fence', 'deflist']
myst_heading_anchors = 3
copybutton_exclude = '.linenos, .gp, .go'

autodoc_member_order = 'bysource'
autodoc_typehints = 'none'
napoleon_google_docstring, napoleon_numpy_docstring = True, False
# types in docstrings are words, as "path" or "callable"
napoleon_use_rtype = napoleon_use_param = False

LINK = re.compile(r'(?<!!)\[([^\]]+)\]\(([^)\s:]+)\)')


def _name_files_outside(app, docname, source):
    """A link from a page to a file of the repository that is no page: its path instead."""
    folder = (Path(app.srcdir) / docname).parent

    def replaced(match):
        target = (folder / match[2].split('#')[0]).resolve()
        inside = target.is_relative_to(app.srcdir)
        return match[0] if inside or not target.is_relative_to(ROOT) else f'{match[1]} (`{target.relative_to(ROOT)}`)'

    source[0] = LINK.sub(replaced, source[0])


def _bars(app, what, name, obj, options, lines):
    """Bars in docstrings are absolute values, not substitutions of reStructuredText."""
    lines[:] = [line.replace('|', r'\|') for line in lines]


def setup(app):
    app.connect('source-read', _name_files_outside)
    app.connect('autodoc-process-docstring', _bars)
