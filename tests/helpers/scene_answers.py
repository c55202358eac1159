"""The right answer to a question about a scene, worked out from the question's words alone.

Nothing here is shared with `unitoken_jax.scenes.questions` but the scene itself.
"""

import re

from unitoken_jax.scenes.scene import Scene, SceneObject

NOTHING = "nothing that i know"
COLOUR = "(red|green|blue|yellow)"
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")
SINGULAR = {"crosses": "cross"} | {
    f"{noun}s": noun for noun in ("circle", "square", "triangle", "digit", "shape", "object")
}
_REQUEST = re.compile(
    r"(describe (what is in )?(the|this) (image|picture|drawing|photo)"
    r"|what (is in|can you see in|objects are in) (the|this) (image|picture|drawing|photo)"
    r"|what does the (image|picture|drawing|photo) show"
    r"|what (do|can) you see|what is (this|shown here|there)|describe what you see|tell me what you see)"
)


def place_of(obj: SceneObject) -> str:
    row, column = divmod(obj.cell, 3)
    return "centre" if (row, column) == (1, 1) else f"{ROWS[row]} {COLUMNS[column]}"


def caption_of(scene: Scene) -> str:
    words = [
        f"{'an' if obj.colour[0] in 'aeiou' else 'a'} {obj.colour} {obj.kind} {place_of(obj)}"
        for obj in sorted(scene, key=lambda obj: obj.cell)
    ]
    return " and ".join(words) or NOTHING


def named(name: str, scene: Scene) -> list[SceneObject]:
    """The objects that "red circle", "digit", "blue object", "object at the top left", ... may mean."""
    name, _, place = name.partition(" at the ")
    *colours, noun = name.split()
    noun = SINGULAR.get(noun, noun)
    return [
        obj
        for obj in scene
        if place in ("", place_of(obj))
        and obj.colour in (colours or [obj.colour])
        and (
            noun in ("object", obj.kind)
            or (noun == "digit" and obj.kind.isdigit())
            or (noun == "shape" and not obj.kind.isdigit())
        )
    ]


def plain(question: str) -> str:
    """The question in small letters, without its mark or full stop."""
    return question.lower().rstrip("?.")


def right_answer(question: str, scene: Scene) -> str:
    """The answer; AssertionError for a question that is not understood, or that is ambiguous."""
    text = plain(question)

    def the_one(name: str, value) -> str:
        objects = named(name, scene)
        assert len(objects) == 1 or not scene, f"{question!r} may mean {objects}"
        return value(objects[0]) if objects else NOTHING

    if re.fullmatch(r"(?:what|which) colour is it|what is the colour of it", text):
        return the_one("object", lambda obj: obj.colour)
    if match := re.fullmatch(r"(?:what|which) colour is the (.*)|what is the colour of the (.*)", text):
        return the_one(match[1] or match[2], lambda obj: obj.colour)
    if match := re.fullmatch(r"(?:what|which) shape is at the (.*)", text):
        return the_one(f"shape at the {match[1]}", lambda obj: obj.kind)
    if re.fullmatch(r"(what|which) shape is this", text):
        return the_one("shape", lambda obj: obj.kind)
    if match := re.fullmatch(rf"(?:what|which) shape is {COLOUR}", text):
        return the_one(f"{match[1]} shape", lambda obj: obj.kind)
    if match := re.fullmatch(rf"which digit is {COLOUR}|read the {COLOUR} digit", text):
        return the_one(f"{match[1] or match[2]} digit", lambda obj: obj.kind)
    if match := re.fullmatch(r"(?:which digit is|read the digit) at the (.*)", text):
        return the_one(f"digit at the {match[1]}", lambda obj: obj.kind)
    if re.fullmatch(r"which digits are there|read the digits", text):
        digits = sorted(named("digit", scene), key=lambda obj: obj.cell)
        return " ".join(obj.kind for obj in digits) or NOTHING
    if match := re.fullmatch(r"how many (.*) (?:are there|do you see|are in the image)|count the (.*)", text):
        return ("zero", "one", "two", "three")[len(named(match[1] or match[2], scene))]
    if match := re.fullmatch(r"where are the (.*) and the (.*)", text):
        return f"{the_one(match[1], place_of)} and {the_one(match[2], place_of)}"
    if match := re.fullmatch(r"(?:where is|where do you see) the (.*)", text):
        return the_one(match[1], place_of)
    if match := re.fullmatch(rf"(?:is there|do you see) a ({COLOUR} \w+)( in the image)?", text):
        return "yes" if named(match[1], scene) else "no"
    if match := re.fullmatch(r"is the (.*?) (left|right|above|below)( or \w+)?( of)? the (.*)", text):
        (first,), (second,) = named(match[1], scene), named(match[5], scene)
        (y, x), (other_y, other_x) = divmod(first.cell, 3), divmod(second.cell, 3)
        true = {"left": x < other_x, "right": x > other_x, "above": y < other_y, "below": y > other_y}
        if not match[3]:
            return "yes" if true[match[2]] else "no"
        (answer,) = (word for word in (match[2], match[3].removeprefix(" or ")) if true[word])
        return answer
    assert _REQUEST.fullmatch(text), f"not understood: {question!r}"
    return caption_of(scene)


def without_benchmark_words(question: str, answer: str) -> tuple[str, str]:
    """Question and answer as they were before `wording.in_benchmark_words`."""
    if match := re.fullmatch(r"Question: (.*)\nOptions:\n((?:[A-D]\. .*\n)+)(.*\s*)", question):
        assert match[3] in (
            "Please select the correct answer from the options above. \n",
            "Answer with the option's letter from the given choices directly.",
        )
        options = dict(line.split(". ", 1) for line in match[2].splitlines())
        return match[1], options[answer]
    for ending in (" Please answer yes or no.", "\nAnswer the question using a single word or phrase."):
        question = question.removesuffix(ending)
    return question, answer
