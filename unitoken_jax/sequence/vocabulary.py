"""Every token id the model knows by role, looked up by *name* in a `tokenizer.json`.

Ids differ between tokenizers (the quickstart trains its own), names do not, so no id is written down
anywhere. Names as in Chameleon's `text_tokenizer.json`; their roles as in the published UniToken code.
"""

import dataclasses
import re

import numpy as np

BOS, PAD, EOS = "<s>", "<pad>", "</s>"
END_OF_IMAGE = "<eoss>"
BEGIN_OF_IMAGE = "<racm3:break>"
SEP = "<sentinel:0>"  # between an image's discrete and continuous tokens
END_OF_TURN = "<reserved08706>"
NEW_LINE = "<reserved08799>"  # closes each row of codes, and each row of any-res features
MAX_SIZE_UNITS = 30  # size tokens count in units (32 px in the published weights): sides up to 960 px
# Not an id: in an image's template a VQ code goes here, in a table of forced ids the model chooses.
MODEL_CHOOSES = -1

_CODE = re.compile(r"IMGIMG([A-J]+)Z")
_LETTERS = "ABCDEFGHIJ"  # spell the decimal digits of a VQ code


def size_name(units: int) -> str:
    """Name of the token that says "this side of the image is `units` size units long"."""
    if not 1 <= units <= MAX_SIZE_UNITS:
        raise ValueError(f"no token for an image side of {units} size units: 1 to {MAX_SIZE_UNITS} exist")
    return f"<reserved{8800 + units:05d}>"


def code_name(code: int) -> str:
    """Name of the token of VQ code `code`: 507 -> "IMGIMGFAHZ"."""
    return "IMGIMG" + "".join(_LETTERS[int(digit)] for digit in str(code)) + "Z"


def control_names(codes: int) -> list[str]:
    """All names a tokenizer for a `codes`-entry codebook must hold, in the order a fresh one uses."""
    sizes = [size_name(units) for units in range(1, MAX_SIZE_UNITS + 1)]
    images = [code_name(code) for code in range(codes)]
    return [BOS, PAD, EOS, *images, END_OF_IMAGE, BEGIN_OF_IMAGE, SEP, END_OF_TURN, NEW_LINE, *sizes]


@dataclasses.dataclass(frozen=True, eq=False)
class Vocabulary:
    """Token ids by role.

    `code_ids` int32[codes]: token id of each VQ code (the published order is a permutation).
    `size_ids` int32[MAX_SIZE_UNITS + 1]: id of "n size units"; entry 0 is -1.
    """

    bos: int
    pad: int
    begin_of_image: int
    end_of_image: int
    sep: int
    end_of_turn: int
    new_line: int
    code_ids: np.ndarray
    size_ids: np.ndarray
    size: int

    @classmethod
    def from_names(cls, ids: dict[str, int], source: str = "tokenizer.json") -> "Vocabulary":
        """Looks every role up in `ids` (name -> id). Raises ValueError naming all that is missing."""
        codes = {}
        for name, token in ids.items():
            if match := _CODE.fullmatch(name):
                codes[int("".join(str(_LETTERS.index(letter)) for letter in match[1]))] = token
        missing = [name for name in control_names(0) if name not in ids]
        missing += [code_name(code) for code in range(max(codes, default=0) + 1) if code not in codes]
        if missing:
            shown = ", ".join(missing[:8]) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
            raise ValueError(
                f"{source} lacks control tokens: {shown}. It must be Chameleon's text_tokenizer.json, or one "
                "made by unitoken_jax.sequence.tokenizer.train_tokenizer."
            )
        sizes = [-1] + [ids[size_name(units)] for units in range(1, MAX_SIZE_UNITS + 1)]
        return cls(
            bos=ids[BOS],
            pad=ids[PAD],
            begin_of_image=ids[BEGIN_OF_IMAGE],
            end_of_image=ids[END_OF_IMAGE],
            sep=ids[SEP],
            end_of_turn=ids[END_OF_TURN],
            new_line=ids[NEW_LINE],
            code_ids=np.array([codes[code] for code in range(len(codes))], np.int32),
            size_ids=np.array(sizes, np.int32),
            size=max(ids.values()) + 1,
        )

    @property
    def codes_of_ids(self) -> np.ndarray:
        """int32[size]: the VQ code of each token id, -1 where the token is not an image code."""
        table = np.full(self.size, -1, np.int32)
        table[self.code_ids] = np.arange(len(self.code_ids), dtype=np.int32)
        return table
