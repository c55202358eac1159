"""Tables in the Markdown reports of evaluation, the quickstart and the ablation."""

from collections.abc import Iterable, Sequence


def markdown_table(header: Sequence, rows: Iterable[Sequence]) -> str:
    """A table with a line for `header` and one for each of `rows`, whose cells are shown as their text.

    A model may answer anything: a vertical bar in a cell is escaped, and line breaks and runs of spaces
    become one space, so that no text ends its cell or its row.
    """
    lines = [_line(header), "|" + "---|" * len(header), *(_line(row) for row in rows)]
    return "\n".join(lines)


def _line(cells: Sequence) -> str:
    texts = (" ".join(str(cell).replace("|", "\\|").split()) for cell in cells)
    return "| " + " | ".join(texts) + " |"
