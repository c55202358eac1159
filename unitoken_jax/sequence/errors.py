"""What is wrong with one row of a data set, as one kind of error that names the row, whatever raised it.

A row meets many libraries on its way (json, the tokenizer, Pillow, readers, a user's mapping), and each has
exceptions of its own. `row_errors` stands around every step of that way, so that a row which cannot be used
is always a RowError that begins with "file:line", and whoever reads rows catches that one class.
"""

import contextlib
from collections.abc import Iterator

# Characters of a message that are shown from its beginning and from its end: a row can hold megabytes.
SHOWN_FIRST, SHOWN_LAST = 300, 200


class RowError(ValueError):
    """A row that cannot be used; the message begins with where it stands, `reason` is its kind."""

    def __init__(self, message: str, reason: str = "format"):
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple:
        return type(self), (str(self), self.reason)


class ConversationError(RowError):
    """A conversation that cannot be used; the message begins with file:line, `reason` is its kind."""


@contextlib.contextmanager
def row_errors(location: str) -> Iterator[None]:
    """Around the work on one row: whatever it raises leaves as a RowError that begins with `location`.

    A RowError keeps its class and reason; of any other exception a ConversationError is made, whose cause it
    is (a traceback shows it). The message is one short line (`legible`).
    """
    try:
        yield
    except RowError as error:
        if str(error).startswith(f"{location}: "):  # a step within this one has said it
            raise
        raise type(error)(f"{location}: {legible(str(error))}", error.reason) from error
    except Exception as error:
        problem = legible(f"{type(error).__name__}: {error}")
        raise ConversationError(f"{location}: cannot be used ({problem})", "unexpected") from error


def legible(text: str) -> str:
    """`text` in one line that fits a screen: its middle left out if it is long, unprintable signs escaped."""
    return _cut(escape(_cut(text)))


def _cut(text: str) -> str:
    """`text` without its middle, if it is long."""
    left_out = len(text) - SHOWN_FIRST - SHOWN_LAST
    if left_out <= 0:
        return text
    return f"{text[:SHOWN_FIRST]} ... ({left_out} more characters) ... {text[-SHOWN_LAST:]}"


def escape(text: str, keep: str = "") -> str:
    """`text` with every unprintable sign but those in `keep` as its escape: a terminal shows it as it is."""
    return "".join(
        sign if sign.isprintable() or sign in keep else sign.encode("unicode_escape").decode("ascii")
        for sign in text
    )
