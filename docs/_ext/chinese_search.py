"""Search of the Chinese site: Latin words as in English, Chinese by pairs of characters.

Sphinx's own class needs a dictionary to find words, cuts no query into them, and in Sphinx 9.0
names a stemmer that is not there.
"""

import re

from sphinx.search.en import SearchEnglish

_RUN = re.compile(r"[\u4e00-\u9fff]+|[A-Za-z0-9_]+")


def pieces(text: str) -> list[str]:
    """What a text is found by."""
    found = []
    for run in _RUN.findall(text):
        pairs = [run[i : i + 2] for i in range(len(run) - 1)]
        found += pairs or [run] if run[0] > "\u4dff" else [run]
    return found


class ChineseSearch(SearchEnglish):
    """Stems, stop words and the stemmer in the browser are those of English."""

    lang = "zh"
    js_splitter_code = r"""
var splitQuery = query => (query.match(/[\u4e00-\u9fff]+|[A-Za-z0-9_]+/g) ?? []).flatMap(run =>
  run < "\u4e00" || run.length < 2 ? [run] : [...run].slice(1).map((last, i) => run[i] + last));
"""

    def split(self, input: str) -> list[str]:
        """Cut the text of a page."""
        return pieces(input)
