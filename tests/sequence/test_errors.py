"""Whatever is raised over a row leaves as one kind of error that names the row."""

import pickle

import pytest

from unitoken_jax.sequence.errors import ConversationError, RowError, legible, row_errors
from unitoken_jax.sequence.image import ImageError


class LibraryError(Exception):
    """An exception of a class that nothing here knows."""


@pytest.mark.parametrize("kind", [LibraryError, RecursionError, MemoryError, StopIteration])
def test_any_exception_becomes_a_row_s_and_stays_its_cause(kind):
    message = rf"^a:3: cannot be used \({kind.__name__}: x\)$"
    with pytest.raises(ConversationError, match=message) as raised, row_errors("a:3"):
        raise kind("x")
    assert isinstance(raised.value.__cause__, kind)
    assert raised.value.reason == "unexpected"


def test_a_row_error_keeps_class_and_reason_and_is_named_once():
    with pytest.raises(ImageError, match=r"^a:3: no pixels$") as raised, row_errors("a:3"), row_errors("a:3"):
        raise ImageError("no pixels", "missing_image")
    assert raised.value.reason == "missing_image"
    again = pickle.loads(pickle.dumps(raised.value))
    assert (type(again), str(again), again.reason) == (ImageError, "a:3: no pixels", "missing_image")


def test_no_error_of_a_row_ends_the_process_s_own_way_out():
    for error in (KeyboardInterrupt, SystemExit):
        with pytest.raises(error), row_errors("a:3"):
            raise error


def test_messages_are_one_short_line_that_any_stream_takes():
    with pytest.raises(RowError) as raised, row_errors("a:3"):
        raise ConversationError("data:" + "A" * 1_000_000 + "\ud83d\n\x1b[31m is no file")
    message = str(raised.value)
    assert len(message) < 700
    assert message.startswith("a:3: data:AAA")
    assert message.endswith(r"\ud83d\n\x1b[31m is no file")
    assert message.isprintable()
    assert legible("é 日本 ü") == "é 日本 ü"
