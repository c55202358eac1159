"""Strategies that damage one thing at a time: a value in a JSON tree, a stretch of bytes, a text.

What reports of users were about comes up often: lone surrogates, numbers of thousands of digits, names that
are too long, control tokens, values of another type.
"""

import json
from typing import Any

from hypothesis import strategies as st

# Texts that stand for JSON which json.dumps cannot write; `as_json` puts the real thing in their place.
_RAW = {"@digits@": "1" * 5000, "@deep@": "[" * 3000 + "]" * 3000, "@exponent@": "1e999", "@open@": '"gpt""'}

_SIGNS = (
    "",
    " ",
    "\ud83d",
    "caf\udce9",
    "\x00",
    "\n",
    "\r\n",
    "\t",
    "\u2028",
    "\ufeff",
    "e\u0301",
    "\u202ea",
)
_MARKS = ("<s>", "</s>", "<|image|>", "<image>", "<image><image>", "<|endoftext|>", "None", "nan", "null")
_NAMES = (
    "a" * 300 + ".png",
    "a" * 5000,
    "../x.png",
    "~",
    "~/x.png",
    "x[1].png",
    "*.png",
    ".",
    "/",
    "/dev/null",
)
_URLS = ("data:image/png;base64," + "QUFB" * 1500, "http://host/x.png", "gs://bucket/x.png")
_NUMBERS = ("-1", "1_0", "٣")

odd_texts = st.sampled_from((*_SIGNS, *_MARKS, *_NAMES, *_URLS, *_NUMBERS)) | st.text(max_size=20)
odd_values = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, -1, 2**63, 10**400, float("nan"), float("inf"), -0.0, 1e308, *_RAW]),
    odd_texts,
    st.lists(odd_texts, max_size=3),
    st.dictionaries(odd_texts, odd_texts, max_size=2),
)


def _paths(tree: Any, path: tuple = ()) -> list[tuple]:
    """Where there is a value in a JSON tree: the keys that lead there."""
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path] + [below for key, value in children for below in _paths(value, (*path, key))]


@st.composite
def damaged_tree(draw, tree: Any, keep: tuple = ()) -> Any:
    """A copy of a JSON tree in which one value is another, absent, twice there, or under another key.

    The value at `keep` and those that it is part of stay.
    """
    tree = json.loads(json.dumps(tree))
    paths = [path for path in _paths(tree) if path != keep[: len(path)]]
    *way, last = draw(st.sampled_from([path for path in paths if path]))
    parent = tree
    for key in way:
        parent = parent[key]
    action = draw(st.sampled_from(["replace", "replace", "replace", "delete", "again", "rename"]))
    if action == "replace":
        parent[last] = draw(odd_values)
    elif action == "again" and isinstance(parent, list):
        parent.insert(last, parent[last])
    elif action == "rename" and isinstance(parent, dict):
        parent[draw(odd_texts)] = parent.pop(last)
    else:
        del parent[last]
    return tree


def as_json(tree: Any) -> bytes:
    """The JSON text of a damaged tree, in one line."""
    text = json.dumps(tree)
    for placeholder, raw in _RAW.items():
        text = text.replace(json.dumps(placeholder), raw)
    return text.encode()


@st.composite
def damaged_bytes(draw, data: bytes) -> bytes:
    """`data` cut off, or with a stretch of it overwritten, taken out or put in again."""
    start = draw(st.integers(0, len(data) - 1))
    end = min(len(data), start + draw(st.sampled_from([1, 2, 4, 16, 256, len(data)])))
    stretch = data[start:end]
    inverted = bytes(255 - byte for byte in stretch)
    known = [b"", bytes(len(stretch)), b"\xff" * len(stretch), inverted, stretch * 2, stretch[::-1]]
    middle = draw(st.sampled_from(known) | st.binary(min_size=1, max_size=8))
    return data[:start] if draw(st.booleans()) and draw(st.booleans()) else data[:start] + middle + data[end:]
