"""Sphinx configuration of both sites: docs/ is the English one, docs/zh/ the Chinese."""

import re
import sys
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst.states import Inliner
from sphinx.application import Sphinx

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

from chinese_search import ChineseSearch  # noqa: E402 - from the folder above
from places import find  # noqa: E402

from rbnorm import __version__  # noqa: E402

project = "rbnorm"
copyright = "the rbnorm authors"
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx-mathjax-offline",
]
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_google_docstring = True
exclude_patterns = ["_build", "_ext", "_static", "_templates", "zh"]
html_theme = "furo"
html_theme_options = {"top_of_page_buttons": []}
html_title = f"rbnorm {release}"
html_static_path = ["_static"]
html_show_sourcelink = False
html_css_files = ["site.css"]
templates_path = ["_templates"]
html_sidebars = {
    "**": [
        "sidebar/brand.html",
        "language.html",
        "sidebar/search.html",
        "sidebar/scroll-start.html",
        "sidebar/navigation.html",
        "sidebar/scroll-end.html",
    ]
}
# The page of `rbnorm explain` and the notebook, where they have been made.
html_extra_path = [path for path in ["_build/explain", "_build/notebook"] if (HERE / path).is_dir()]


def place(
    name: str, rawtext: str, text: str, lineno: int, inliner: Inliner, options=None, content=None
):
    """The role ``{place}``: where a name stands, which must exist; of a piece of a line, it."""
    try:
        found = find(text)
        where = nodes.literal(rawtext, str(found))
        if " @ " not in text:
            return [where], []
        return [nodes.literal(rawtext, found.code), nodes.Text(" ("), where, nodes.Text(")")], []
    except LookupError as error:
        message = inliner.reporter.error(str(error), line=lineno)
        return [inliner.problematic(rawtext, rawtext, message)], [message]


# After Chinese punctuation, and between Chinese words, the end of a line is not a blank.
_MARK = "\u3000-\u303f\uff00-\uffef"
_WORD = rf"{_MARK}\u4e00-\u9fff“”"
_END = re.compile(
    rf"(?<=[{_MARK}])\n *(?=[^\s\-#|>:])(?!```|\$\$|\d+\.)|(?<=[{_WORD}])\n *(?=[{_WORD}])"
)


def chinese(app: Sphinx, docname: str, source: list[str]) -> None:
    """Lines of Chinese pages are joined, and links to English pages lead to the other site."""
    if app.config.language == "zh_CN":
        blocks = re.split(r"(^```.*?^```$)", source[0], flags=re.MULTILINE | re.DOTALL)
        source[0] = "".join(b if b.startswith("```") else _END.sub("", b) for b in blocks)
        link = r"\[([^\]]+)\]\(\.\./(\w[\w-]*)\.md(#[\w-]+)?\)"
        source[0] = re.sub(link, r'<a href="../\2.html\3">\1</a>', source[0])


def other_language(app: Sphinx, pagename: str, template: str, context: dict, doctree) -> None:
    """The same page in the other language, or its first page."""
    chinese = app.config.language == "zh_CN"
    source = HERE if chinese else HERE / "zh"
    page = pagename if (source / f"{pagename}.md").is_file() else "index"
    root = context["pathto"]("index", 0).removesuffix("index.html").removesuffix("#")
    context["other_language"] = f"{root}{'../' if chinese else 'zh/'}{page}.html"
    context["other_language_name"] = "English" if chinese else "简体中文"


def setup(app: Sphinx) -> None:
    """Everything that is this site's own."""
    app.add_role("place", place)
    app.add_search_language(ChineseSearch)
    app.connect("source-read", chinese)
    app.connect("html-page-context", other_language)
