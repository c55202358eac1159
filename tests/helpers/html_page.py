"""Reads HTML reports back, and asserts that they are well-formed."""

import base64
import html.parser
import io

from PIL import Image

_EMPTY = {"meta", "img", "br", "link"}


class Page(html.parser.HTMLParser):
    """`text`, `images` [(format, size)], and `attributes` of a page; asserts that its tags are closed."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.text, self.images, self.tags = [], "", [], set()
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag == "img":
            kind, comma, data = dict(attributes)["src"].partition(",")
            assert (kind, comma) == ("data:image/jpeg;base64", ",")
            with Image.open(io.BytesIO(base64.b64decode(data))) as image:
                self.images.append((image.format, image.size))
        if tag not in _EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def read_page(path) -> Page:
    return Page(path.read_text(encoding="utf-8"))
