"""Questions about a scene with their true answers, and captions.

The language is small, closed and lower case, and every question has one right answer. A question whose
answer names a digit is reading ("textread"); the others are "general", scored apart as in the paper.
"""

import collections
import dataclasses
import random
from collections.abc import Callable, Iterable

from unitoken_jax.scenes.scene import COLOURS, PLACES, SHAPES, Scene, SceneObject

NUMBERS = ("zero", "one", "two", "three")
PLURALS = {
    "circle": "circles",
    "square": "squares",
    "triangle": "triangles",
    "cross": "crosses",
    "digit": "digits",
    "shape": "shapes",
    "object": "objects",
}
RELATIONS = ("left of", "right of", "above", "below")
CAPTIONS = ("caption", "read caption")
NOTHING = "nothing that i know"  # the caption of an image without objects, a photograph say
_TRIES = 4  # Attempts for each question that `ask_several` is to find.
_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


@dataclasses.dataclass(frozen=True)
class Question:
    """One question about one scene. `kind` is a key of QUESTIONS or TRAINING_ONLY."""

    kind: str
    text: str
    answer: str

    @property
    def set(self) -> str:
        return "textread" if self.kind in TEXTREAD else "general"


def related(first: SceneObject, relation: str, second: SceneObject) -> bool:
    """True where `first` stands in `relation` to `second`: strictly, and whatever the other direction is."""
    if relation == "left of":
        return first.column < second.column
    if relation == "right of":
        return first.column > second.column
    if relation == "above":
        return first.row < second.row
    if relation == "below":
        return first.row > second.row
    raise ValueError(f"no relation {relation!r}: the relations are {', '.join(RELATIONS)}")


def with_article(words: str) -> str:
    """`words` with the article that their sound takes: "a red circle", "an 8"."""
    return ("an " if words.startswith("8") else "a ") + words


def caption(scene: Scene) -> str:
    """The canonical sentence: every object with colour and place, in reading order; NOTHING without any."""
    return (
        NOTHING
        if not scene
        else " and ".join(f"{with_article(f'{obj.colour} {obj.kind}')} {obj.place}" for obj in sorted(scene))
    )


def _noun(obj: SceneObject) -> str:
    """What to call an object without reading it."""
    return "digit" if obj.is_digit else obj.kind


def _unique_names(obj: SceneObject, scene: Scene) -> list[str]:
    """All names that mean this object and no other, none of which gives a digit away."""
    names = []
    others = [other for other in scene if other != obj]
    if not others:
        names.append("object")
    if not obj.is_digit and all(other.is_digit for other in others):
        names.append("shape")
    if all(_noun(other) != _noun(obj) for other in others):
        names.append(_noun(obj))
    if all(other.colour != obj.colour for other in others):
        names.append(f"{obj.colour} object")
    if all((_noun(other), other.colour) != (_noun(obj), obj.colour) for other in others):
        names.append(f"{obj.colour} {_noun(obj)}")
    return names


def _pick(rng: random.Random, *phrases: str) -> str:
    """One of the phrases, all equally likely."""
    return phrases[int(rng.random() * len(phrases))]


def _caption(scene: Scene, rng: random.Random) -> Question | None:
    if not scene or any(obj.is_digit for obj in scene):
        return None
    return Question("caption", describe(rng), caption(scene))


def _read_caption(scene: Scene, rng: random.Random) -> Question | None:
    if not any(obj.is_digit for obj in scene):
        return None
    return Question("read caption", describe(rng), caption(scene))


def describe(rng: random.Random) -> str:
    """A request for a caption, in one of many wordings."""
    image = _pick(rng, "image", "image", "picture", "drawing", "photo")
    return _pick(
        rng,
        f"describe the {image}",
        f"describe this {image}",
        f"what is in the {image}?",
        f"what is in this {image}?",
        f"what does the {image} show?",
        f"what can you see in this {image}?",
        f"what objects are in the {image}?",
        f"describe what is in the {image}",
        "what do you see?",
        "what can you see?",
        "what is this?",
        "what is shown here?",
        "what is there?",
        "describe what you see",
        "tell me what you see",
    )


def _nothing(scene: Scene, rng: random.Random) -> Question | None:
    """What there is to say of an image without objects: a photograph, a plain ground."""
    if scene:
        return None
    colour, noun = rng.choice(tuple(COLOURS)), rng.choice((*SHAPES, "digit"))
    if rng.random() < 0.4:
        return Question("nothing", describe(rng), NOTHING)
    if rng.random() < 0.4:
        name = rng.choice((*PLURALS.values(), f"{colour} objects"))
        return Question("nothing", _how_many(name, rng), NUMBERS[0])
    if rng.random() < 0.4:
        return Question("nothing", _is_there(colour, noun, rng), "no")
    place = rng.choice(PLACES)
    text = _pick(
        rng,
        f"what colour is the {noun}?",
        f"where is the {colour} {noun}?",
        f"where is the {noun}?",
        f"what shape is at the {place}?",
        f"which digit is {colour}?",
        "read the digits",
    )
    return Question("nothing", text, NOTHING)


def _colour(scene: Scene, rng: random.Random) -> Question | None:
    if not scene:
        return None
    obj = rng.choice(scene)
    names = [f"the {name}" for name in _unique_names(obj, scene) if obj.colour not in name]
    name = rng.choice([*names, f"the object at the {obj.place}", *(["it"] if len(scene) == 1 else [])])
    return Question(
        "colour",
        _pick(rng, f"what colour is {name}?", f"what is the colour of {name}?", f"which colour is {name}?"),
        obj.colour,
    )


def _shape(scene: Scene, rng: random.Random) -> Question | None:
    shapes = [obj for obj in scene if not obj.is_digit]
    if not shapes:
        return None
    obj = rng.choice(shapes)
    phrases = [f"which shape is at the {obj.place}?", f"what shape is at the {obj.place}?"]
    if len(scene) == 1:
        phrases += ["which shape is this?", "what shape is this?"]
    if sum(other.colour == obj.colour for other in shapes) == 1:
        phrases += [f"which shape is {obj.colour}?", f"what shape is {obj.colour}?"]
    return Question("shape", rng.choice(phrases), obj.kind)


def _how_many(name: str, rng: random.Random) -> str:
    return _pick(
        rng,
        f"how many {name} are there?",
        f"how many {name} do you see?",
        f"how many {name} are in the image?",
        f"count the {name}",
    )


def _count(scene: Scene, rng: random.Random) -> Question | None:
    """Asks for an answer drawn evenly from those the scene can give, so that a guess seldom helps."""
    if not scene:
        return None
    groups = {
        "objects": list(scene),
        "shapes": [obj for obj in scene if not obj.is_digit],
        "digits": [obj for obj in scene if obj.is_digit],
    }
    for colour in COLOURS:
        groups[f"{colour} objects"] = [obj for obj in scene if obj.colour == colour]
    for shape in SHAPES:
        groups[PLURALS[shape]] = [obj for obj in scene if obj.kind == shape]
    by_answer: dict[int, list[str]] = {}
    for name, group in groups.items():
        by_answer.setdefault(len(group), []).append(name)
    count = rng.choice(sorted(by_answer)[1:]) if rng.random() < 0.8 else 0  # every scene lacks something
    name = rng.choice(by_answer[count])
    return Question("count", _how_many(name, rng), NUMBERS[count])


def _position(scene: Scene, rng: random.Random) -> Question | None:
    named = [(obj, name) for obj in scene for name in _unique_names(obj, scene)]
    if not named:
        return None
    obj, name = rng.choice(named)
    return Question(
        "position", _pick(rng, f"where is the {name}?", f"where do you see the {name}?"), obj.place
    )


def _positions(scene: Scene, rng: random.Random) -> Question | None:
    """Asks for two places at once."""
    named = [(obj, rng.choice(names)) for obj in scene if (names := _unique_names(obj, scene))]
    if len(named) < 2:
        return None
    (first, first_name), (second, second_name) = rng.sample(named, 2)
    text = f"where are the {first_name} and the {second_name}?"
    return Question("positions", text, f"{first.place} and {second.place}")


def _relation(scene: Scene, rng: random.Random) -> Question | None:
    """Two forms, yes or no and either-or; what is asked about always differs between the two objects."""
    named = [(obj, rng.choice(names)) for obj in scene if (names := _unique_names(obj, scene))]
    if len(named) < 2:
        return None
    (first, first_name), (second, second_name) = rng.sample(named, 2)
    true = [relation for relation in RELATIONS if related(first, relation, second)]
    relation = rng.choice(true)
    if rng.random() < 0.5:
        answer, claimed = ("yes", relation) if rng.random() < 0.5 else ("no", _OPPOSITE[relation])
        return Question("relation", f"is the {first_name} {claimed} the {second_name}?", answer)
    pair = "left or right of" if relation in ("left of", "right of") else "above or below"
    return Question(
        "relation", f"is the {first_name} {pair} the {second_name}?", relation.removesuffix(" of")
    )


def _is_there(colour: str, noun: str, rng: random.Random) -> str:
    name = f"a {colour} {noun}"
    return _pick(rng, f"is there {name}?", f"do you see {name}?", f"is there {name} in the image?")


def _exists(scene: Scene, rng: random.Random) -> Question | None:
    """Asks whether there is a red circle, or the like; the answer is yes or no, equally often.

    An object that is not there combines a colour and a noun of the scene where it can. Nouns are as frequent
    with both answers: the question alone must not give the answer away.
    """
    if not scene:
        return None
    true = {(obj.colour, _noun(obj)) for obj in scene}
    obj = rng.choice(scene)
    colour, noun = obj.colour, _noun(obj)
    if answer := rng.random() < 0.5:
        pass
    elif mixed := [pair for other in scene if (pair := (other.colour, noun)) not in true]:
        colour, noun = rng.choice(mixed)
    else:
        while (colour, noun) in true:
            if rng.random() < 0.5:
                colour = rng.choice(tuple(COLOURS))
            else:
                noun = rng.choice(SHAPES) if rng.random() < 0.3 else "digit"
    return Question("exists", _is_there(colour, noun, rng), "yes" if answer else "no")


def _digit_by_colour(scene: Scene, rng: random.Random) -> Question | None:
    digits = [obj for obj in scene if obj.is_digit]
    unique = [obj for obj in digits if sum(other.colour == obj.colour for other in digits) == 1]
    if not unique:
        return None
    obj = rng.choice(unique)
    text = _pick(rng, f"which digit is {obj.colour}?", f"read the {obj.colour} digit")
    return Question("digit by colour", text, obj.kind)


def _digit_by_place(scene: Scene, rng: random.Random) -> Question | None:
    digits = [obj for obj in scene if obj.is_digit]
    if not digits:
        return None
    obj = rng.choice(digits)
    text = _pick(rng, f"which digit is at the {obj.place}?", f"read the digit at the {obj.place}")
    return Question("digit by place", text, obj.kind)


def _digits(scene: Scene, rng: random.Random) -> Question | None:
    """Asks for all digits of the scene, which the answer gives in reading order."""
    digits = [obj.kind for obj in sorted(scene) if obj.is_digit]
    if not digits:
        return None
    return Question("digits", _pick(rng, "which digits are there?", "read the digits"), " ".join(digits))


GENERAL: dict[str, Callable[[Scene, random.Random], Question | None]] = {
    "caption": _caption,
    "colour": _colour,
    "shape": _shape,
    "count": _count,
    "position": _position,
    "relation": _relation,
    "exists": _exists,
    "nothing": _nothing,
}
TEXTREAD: dict[str, Callable[[Scene, random.Random], Question | None]] = {
    "digit by colour": _digit_by_colour,
    "digit by place": _digit_by_place,
    "digits": _digits,
    "read caption": _read_caption,
}
QUESTIONS = GENERAL | TEXTREAD
# Asked in training only: to find an object by its looks is the last thing learnt, and two at once teach it
# sooner.
TRAINING_ONLY = {"positions": _positions}


def ask(scene: Scene, kind: str, rng: random.Random) -> Question | None:
    """A question of `kind` about the scene, or None where the scene gives no unambiguous one."""
    return (QUESTIONS | TRAINING_ONLY)[kind](scene, rng)


def ask_several(scene: Scene, number: int, rng: random.Random, weights: dict[str, float]) -> list[Question]:
    """Up to `number` different questions, their kinds drawn by weight, with repetition but for captions."""
    unique: dict[str, Question] = {}
    for _ in range(_TRIES * number):  # a scene may have no more to ask
        (kind,) = rng.choices(list(weights), list(weights.values()))
        if len(unique) < number and (question := ask(scene, kind, rng)):
            unique.setdefault(kind if kind in CAPTIONS else question.text, question)
    return list(unique.values())


def is_right(prediction: str, answer: str) -> bool:
    """Whether `prediction` is `answer`, apart from letter case, spaces and a full stop at the end."""
    return " ".join(prediction.lower().split()).removesuffix(".") == answer


def score_answers(rows: Iterable[dict]) -> dict:
    """Accuracies in [0, 1] of rows with `set`, `kind`, `answer` (the true one) and `given`.

    {"general": share of its questions answered right, "textread": ..., "kinds": {kind: ...}}; a set or kind
    without rows is absent.
    """
    right: dict[str, dict[str, list[bool]]] = {"set": {}, "kind": {}}
    for row in rows:
        for key, values in right.items():
            values.setdefault(row[key], []).append(is_right(row["given"], row["answer"]))
    means = {
        key: {name: sum(hits) / len(hits) for name, hits in values.items()} for key, values in right.items()
    }
    return {**means["set"], "kinds": means["kind"]}


def majority_guess(rows: Iterable[dict]) -> dict[str, float]:
    """{kind: share of its most frequent true answer}, which always giving that answer would score."""
    answers: dict[str, collections.Counter] = {}
    for row in rows:
        answers.setdefault(row["kind"], collections.Counter())[row["answer"]] += 1
    return {kind: max(counts.values()) / counts.total() for kind, counts in answers.items()}
