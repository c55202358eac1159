"""The text tokenizer: a `tokenizer.json` (HF `tokenizers` format) and the control ids in it.

Users' text never becomes a control id: control names are encoded as plain text here, and refused with a
clear error where sequences are built (`control_name_in`), unless the texts are a benchmark's (`literal`).
Control ids are put in by `SequenceWriter` alone.
"""

import hashlib
import os
import re
from collections.abc import Iterable, Sequence

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from unitoken_jax.sequence.vocabulary import Vocabulary, control_names
from unitoken_jax.storage.atomic import write_text
from unitoken_jax.storage.paths import as_path

_CONTROL_SHAPE = re.compile(r"<[^<>\s]+>|IMGIMG[A-J]+Z")


class Tokenizer:
    """Text <-> ids, and the `vocabulary` of control ids. Picklable (data workers are processes)."""

    def __init__(self, backend: tokenizers.Tokenizer, source: str = "tokenizer.json"):
        """Wraps `backend`. Raises ValueError naming `source` and the control tokens it lacks."""
        self._set_up(backend, source)

    def _set_up(self, backend: tokenizers.Tokenizer, source: str) -> None:
        self._backend, self._source = backend, source
        self._backend.encode_special_tokens = True  # control names in a text stay text
        self._backend.no_truncation()
        self._backend.no_padding()
        names = backend.get_vocab(with_added_tokens=True)
        self.vocabulary = Vocabulary.from_names(names, source)
        control = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
        control.update(control_names(len(self.vocabulary.code_ids)))
        self._control = {name: token for name, token in names.items() if name in control}
        self._control_ids = frozenset(self._control.values())

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Tokenizer":
        """Reads `path`, a tokenizer.json. Raises ValueError naming the file where it is not one."""
        path = as_path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no tokenizer at {path}: expected a tokenizer.json")
        try:
            backend = tokenizers.Tokenizer.from_buffer(path.read_bytes())
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"{path} is not a tokenizer.json that `tokenizers` can read: {error}") from None
        return cls(backend, str(path))

    def save(self, path: str | os.PathLike) -> None:
        """Writes the tokenizer.json at `path`, atomically."""
        write_text(as_path(path), self._backend.to_str(pretty=False))

    def fingerprint(self) -> str:
        """Changes when any text might be tokenized differently."""
        return hashlib.sha256(self._backend.to_str().encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; never a control id, whatever the text says. No BOS is added."""
        ids = self._backend.encode(text, add_special_tokens=False).ids
        if self._control_ids.isdisjoint(ids):
            return ids
        # A vocabulary whose merges spell a control name: encode character by character instead.
        ids = [i for char in text for i in self._backend.encode(char, add_special_tokens=False).ids]
        if not self._control_ids.isdisjoint(ids):
            raise ValueError(f"{self._source} turns plain text into control tokens: {text[:80]!r}")
        return ids

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of `ids`; control ids and ids beyond the vocabulary are dropped."""
        size = self.vocabulary.size
        kept = [int(i) for i in ids if 0 <= i < size and int(i) not in self._control_ids]
        return self._backend.decode(kept, skip_special_tokens=False)

    def is_control(self, token: int) -> bool:
        """Whether `token` is a control id."""
        return token in self._control_ids

    def name(self, token: int) -> str:
        """How the vocabulary writes id `token`; "?" where it has none."""
        return self._backend.id_to_token(token) or "?"

    def control_name_in(self, text: str) -> str | None:
        """The first control token's name that `text` spells out, or None."""
        for match in _CONTROL_SHAPE.finditer(text):
            if match[0] in self._control:
                return match[0]
        return None

    def literal(self) -> "Tokenizer":
        """This tokenizer for texts that nobody may rewrite, a benchmark's: `control_name_in` finds nothing.

        `encode` is the same, so that a control token's name is plain text. Not kept by pickling.
        """
        other = object.__new__(type(self))
        vars(other).update(vars(self) | {"_control": {}})
        return other

    def __getstate__(self) -> dict:
        return {"json": self._backend.to_str(), "source": self._source}

    def __setstate__(self, state: dict) -> None:
        self._set_up(tokenizers.Tokenizer.from_str(state["json"]), state["source"])


def train_tokenizer(
    texts: Iterable[str], codes: int, vocab_size: int, phrases: Sequence[str] = ()
) -> Tokenizer:
    """A byte-level BPE tokenizer of `texts` for a `codes`-entry codebook.

    The control tokens take the first ids (order of `control_names`), then the 256 bytes, then merges up to
    `vocab_size` ids; frequent words, with their leading space, become one token each, and so does each of
    `phrases` (a fixed instruction, say). Deterministic.
    Raises ValueError where `vocab_size` cannot hold control tokens and bytes.
    """
    names = control_names(codes)
    smallest_size = len(names) + 256 + len(phrases)
    if vocab_size < smallest_size:
        raise ValueError(
            f"vocab_size {vocab_size} is too small: {len(names)} control tokens, {len(phrases)} phrases "
            f"and 256 bytes need {smallest_size}"
        )
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(phrases),
        special_tokens=names,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # Control names in the texts stay text here too: the trainer sees them split by the pre-tokenizer.
    backend.train_from_iterator(texts, trainer)
    backend.add_tokens([tokenizers.AddedToken(phrase, normalized=False) for phrase in phrases])
    return Tokenizer(backend, "the trained tokenizer")
