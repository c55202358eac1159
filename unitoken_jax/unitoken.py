"""The public class: a model ready to draw, to answer, or to be taken apart into parameters and a function."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from PIL import Image

from unitoken_jax.checkpoint.model_directory import NETWORK
from unitoken_jax.generate import chat, image, text
from unitoken_jax.generate.runtime import Runtime


class UniToken(Runtime):
    """A model ready for use: `generate` images, `answer` questions, or take `params` and `apply`.

    `UniToken.load(path)` reads a model directory, `UniToken.load()` the small model inside the package (or
    `quickstart/model`, where there is one), `UniToken.load(path, adapter=folder)` a model with an adapter
    over it (`with_adapter` changes it for another), and `UniToken(config, params, tokenizer)` takes what is
    in memory. It is a `Runtime`, and so what every function of `generate`, `inspection` and `evaluate` takes.
    """

    def generate(self, prompts: Sequence[str], **settings) -> list[Image.Image]:
        """PIL images of `prompts`; settings (seed, guidance, number, ...) as `generate.image.draw`."""
        return [result.image for result in self.image_results(prompts, **settings)]

    def answer(self, conversations: Sequence, **settings) -> list[str]:
        """Answers, as text, to [[text or image, ...], ...]; settings as `generate.text.answer`."""
        return [result.text for result in self.text_results(conversations, **settings)]

    def stream(self, conversations: Sequence, **settings) -> Iterator[tuple[int, str]]:
        """Answers as they are written: (number of the conversation, next piece of its answer)."""
        return text.stream(self, conversations, **settings)

    def chat(self, conversations: Sequence, **settings) -> list[chat.ChatResult]:
        """Answers of text and images; settings as `generate.chat.chat`."""
        return chat.chat(self, conversations, **settings)

    def image_results(self, prompts: Sequence[str], **settings) -> list[image.ImageResult]:
        """As `generate`, with each image's tokens and timing."""
        return image.draw(self, prompts, **settings)

    def text_results(self, conversations: Sequence, **settings) -> list[text.TextResult]:
        """As `answer`, with each answer's tokens and timing."""
        return text.answer(self, conversations, **settings)

    def apply(self, params: Mapping, batch: Mapping) -> jax.Array:
        """Logits float32[B, T, V] of a `Batch`; pure. `params`: the whole tree, or the network's alone, its
        layers stacked (as a model directory has them) or apart (as `self.params` has them)."""
        network = {name: params[name] for name in NETWORK if name in params}
        logits: Any = self.module.apply({"params": network}, batch)
        return logits
