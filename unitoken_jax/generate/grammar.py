"""What an image's tokens look like: a table of forced ids, -1 where the model chooses a code.

    begin | h w | code ... code new-line | ... | code ... code new-line | end

The table is data, so that drawing is one loop for every size. Plain numpy.
"""

import dataclasses

import numpy as np

from unitoken_jax.config import ModelConfig
from unitoken_jax.sequence.layout import image_template
from unitoken_jax.sequence.vocabulary import MODEL_CHOOSES, Vocabulary


@dataclasses.dataclass(frozen=True, eq=False)
class ImageGrammar:
    """Which tokens an image of `rows` x `columns` codes has.

    `forced` int32[N]: the tokens after begin-of-image; an id, or MODEL_CHOOSES where the model chooses a
    code. `begin` the begin-of-image id; `code_ids` int32[codes]: the token of each VQ code.
    """

    rows: int
    columns: int
    begin: int
    forced: np.ndarray
    code_ids: np.ndarray

    @property
    def head(self) -> np.ndarray:
        """int32[2]: the forced ids before the first code. They can be read with the prompt."""
        return self.forced[: int(np.argmax(self.forced == MODEL_CHOOSES))]

    @property
    def row_end(self) -> np.ndarray:
        """int32[1]: the ids forced after each row of codes. They can be read with the row's last code."""
        return self.forced[len(self.head) + self.columns :][:1]

    def tokens(self, ids: np.ndarray) -> np.ndarray:
        """All tokens int32[B, N] after begin-of-image, of codes' token ids int32[B, rows * columns]."""
        tokens = np.repeat(self.forced[None], len(ids), axis=0)
        tokens[:, self.forced == MODEL_CHOOSES] = ids
        return tokens

    def codes(self, tokens: np.ndarray) -> np.ndarray:
        """VQ codes int32[B, rows, columns] of `tokens` int32[B, N], which must obey the table.

        Raises ValueError naming the first token that breaks the grammar.
        """
        tokens = np.asarray(tokens)
        if tokens.ndim != 2 or tokens.shape[1] != len(self.forced):
            raise ValueError(
                f"tokens of a {self.rows} x {self.columns} image are int32[B, {len(self.forced)}] "
                f"(after begin-of-image), not {tokens.shape}"
            )
        table = np.full(max(int(self.code_ids.max()), int(tokens.max(initial=0))) + 1, -1, np.int32)
        table[self.code_ids] = np.arange(len(self.code_ids), dtype=np.int32)
        codes = table[tokens]
        chosen = self.forced == MODEL_CHOOSES
        wrong = np.where(chosen, codes < 0, tokens != self.forced)
        if wrong.any():
            row, column = map(int, np.argwhere(wrong)[0])
            expected = "an image code" if chosen[column] else f"the forced id {self.forced[column]}"
            raise ValueError(f"image {row}, token {column}: id {tokens[row, column]} is not {expected}")
        return codes[:, chosen].reshape(len(tokens), self.rows, self.columns)


def image_grammar(config: ModelConfig, vocabulary: Vocabulary, height: int, width: int) -> ImageGrammar:
    """The grammar of a `height` x `width` px image. ValueError for an unsupported size."""
    begin, *forced = image_template(config, vocabulary, (height, width)).tolist()
    rows, columns = height // config.vq.stride, width // config.vq.stride
    codes = vocabulary.code_ids[: config.vq.codes]  # a tokenizer may name more than the codebook has
    return ImageGrammar(rows, columns, begin, np.array(forced, np.int32), codes)
