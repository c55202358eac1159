"""Reports as one HTML file each: tables and small images in it, nothing fetched, no scripts."""

import base64
import html
import io
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence

from PIL import Image

from unitoken_jax.storage.atomic import write_text

_SIDE, _QUALITY = 224, 80  # of images in a report: pixels, JPEG quality
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.45 system-ui, sans-serif; color: #222; margin: 2em auto; max-width: 72em }}
table {{ border-collapse: collapse; margin: 1em 0 }}
th, td {{ border: 1px solid #ccc; padding: .25em .6em; text-align: left; vertical-align: top }}
.cards {{ display: flex; flex-wrap: wrap; gap: 1em }}
.card {{ width: 17em; border: 1px solid #ccc; border-left: .4em solid #999 }}
.card {{ padding: .6em; overflow-wrap: anywhere }}
.right {{ border-left-color: #28a04b }} .wrong {{ border-left-color: #d23c32 }}
.card img {{ max-width: 100%; min-width: 6em; image-rendering: pixelated }} .card p {{ margin: .3em 0 }}
</style></head><body>
<h1>{title}</h1>
{body}
</body></html>
"""


def write_page(path: str | os.PathLike, title: str, body: Iterable[str]) -> None:
    """Writes the HTML file `path`, whole or not at all, of pieces that the functions below make."""
    text = _PAGE.format(title=html.escape(title), body="\n".join(body))
    write_text(pathlib.Path(path), text)


def heading(text: str) -> str:
    """A heading of the second order."""
    return f"<h2>{html.escape(text)}</h2>"


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{html.escape(text)}</p>"


def table(header: Sequence, rows: Iterable[Sequence]) -> str:
    """A table; cells of any type are shown as their text."""
    lines = ["".join(f"<th>{html.escape(str(cell))}</th>" for cell in header)]
    lines += ["".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) for row in rows]
    return "<table>" + "\n".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def cards(html_cards: Iterable[str]) -> str:
    """Cards (`card`) side by side, as many in a row as fit."""
    return '<div class="cards">' + "\n".join(html_cards) + "</div>"


def card(jpegs: Sequence[str], lines: Mapping[str, str], verdict: str = "") -> str:
    """Images (`small_jpeg`) over labelled lines; `verdict` "right" or "wrong" colours its edge."""
    images = [f'<img alt="" src="data:image/jpeg;base64,{jpeg}">' for jpeg in jpegs]
    texts = [
        f"<p><b>{html.escape(label)}</b> {html.escape(text).replace(chr(10), '<br>')}</p>"
        for label, text in lines.items()
    ]
    return f'<div class="card {html.escape(verdict)}">' + "".join(images + texts) + "</div>"


def small_jpeg(image: Image.Image) -> str:
    """Base64 of a JPEG that is at most 224 pixels a side; what is transparent becomes white."""
    image = image.convert("RGBA")
    image.thumbnail((_SIDE, _SIDE))
    flat = Image.new("RGB", image.size, "white")
    flat.paste(image, mask=image.getchannel("A"))
    data = io.BytesIO()
    flat.save(data, "JPEG", quality=_QUALITY)
    return base64.b64encode(data.getvalue()).decode("ascii")
