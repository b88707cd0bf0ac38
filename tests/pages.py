"""Reading HTML pages in tests."""

from html.parser import HTMLParser

_VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """What a page shows.

    Attributes:
        text: all of it, with single blanks.
        tables: heading -> rows -> cells.
        looks: text of an element with a class -> that class.
        tags: names of all elements, in order.
        links: whatever it would load or lead to.
    """

    def __init__(self, path):
        super().__init__()
        self.tables, self.looks, self.tags, self.links = {}, {}, [], []
        self._open, self._heading, self._words = [], "", []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self._open == [], "elements that are not closed"
        self.text = " ".join(" ".join(self._words).split())

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.append(tag)
        self.links += [values[name] for name in ("href", "src") if name in values]
        if tag not in _VOID:
            self._open.append((tag, values.get("class", ""), len(self._words)))
        if tag == "table":
            self._rows = self.tables.setdefault(self._heading, [])
        elif tag == "tr":
            self._rows.append([])

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_data(self, data):
        if not self._open or self._open[-1][0] not in ("style", "title"):
            self._words.append(data)

    def handle_endtag(self, tag):
        name, look, first = self._open.pop()
        assert name == tag
        words = " ".join("".join(self._words[first:]).split())
        if tag in ("h1", "h2"):
            self._heading = words
        elif tag in ("th", "td"):
            self._rows[-1].append(words)
        if look:
            self.looks[words] = look
