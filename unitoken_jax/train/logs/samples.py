"""Images and answers of a run's present parameters: what a loss does not show.

`workdir`/samples/step_N/ holds one PNG a prompt and answers.md; TensorBoard gets the same.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np
from PIL import Image

from unitoken_jax.config import Config
from unitoken_jax.data.loader import Validation
from unitoken_jax.sequence.build import TEXT_TO_IMAGE_INSTRUCTION, build_prompt
from unitoken_jax.sequence.conversation import Conversation, image_source
from unitoken_jax.sequence.conversation_file import read_conversations
from unitoken_jax.sequence.errors import RowError
from unitoken_jax.sequence.image import open_image
from unitoken_jax.sequence.tokenizer import Tokenizer
from unitoken_jax.storage.atomic import atomic_folder

FOLDER = "samples"
SEARCHED = 64  # first conversations of each validation set in which prompts and questions are looked for


@dataclasses.dataclass(frozen=True)
class Question:
    """A held-out question, as a conversation of one turn, and the data's answer ("" where it has none)."""

    conversation: Conversation
    truth: str

    @property
    def text(self) -> str:
        """The question, with a mark for each image."""
        (turn,) = self.conversation.turns
        return "".join(part if isinstance(part, str) else "<|image|>" for part in turn.parts)


class Samples:
    """Draws held-out prompts and answers held-out questions.

    They are those of the conversation file `config.train.samples` (answers may be left out there), else the
    first of the validation sets: `config.train.sample_count` of each kind.
    """

    def __init__(self, config: Config, tokenizer: Tokenizer, mesh, validation: Validation | None, workdir):
        """Raises ValueError where there is nothing to draw or answer, and RowError for a bad conversation of
        `config.train.samples`."""
        settings = config.train
        self._config, self._tokenizer, self._mesh = config, tokenizer, mesh
        self._folder = pathlib.Path(workdir) / FOLDER
        if settings.samples:
            conversations: Iterable[Conversation] = read_conversations(settings.samples, need_answers=False)
        else:
            conversations = first_of(validation.sources if validation else [])
        self.prompts, self.questions = prompts_and_questions(
            conversations, settings.sample_count, self._is_usable
        )
        if not (self.prompts or self.questions):
            raise ValueError(
                "train.sample_every is set, but there is nothing to draw or answer: set data.validation, or "
                "train.samples to a file of conversations"
            )

    def _is_usable(self, question: Conversation) -> bool:
        """Whether a question can be asked, down to its images' pixels. A bad one of a validation set is left
        out, where bad rows are; any other raises its RowError now, not at the step that samples."""
        try:
            build_prompt(question, self._tokenizer, self._config.model)
        except RowError:
            if self._config.train.samples or self._config.data.on_error != "skip":
                raise
            return False
        return True

    def make(self, params: dict, step: int) -> dict[str, np.ndarray]:
        """Draws and answers with `params` on every process; the first one writes the folder of `step`.

        Returns the images for TensorBoard, {name: uint8[H, W, 3]}.
        """
        from unitoken_jax.unitoken import UniToken

        model = UniToken(
            self._config.model, params, self._tokenizer, mesh=self._mesh, dtype=self._config.train.dtype
        )
        drawable = self.prompts and params.get("vqgan", {}).get("decoder")
        images = model.generate(self.prompts) if drawable else []
        conversations = [question.conversation for question in self.questions]
        answers = model.answer(conversations) if conversations else []
        if jax.process_index() == 0:
            self._write(step, images, answers)
        return {f"samples/{i}": np.asarray(image) for i, image in enumerate(images)}

    def _write(self, step: int, images: list[Image.Image], answers: list[str]) -> None:
        """Writes the folder of `step`, complete or not at all."""
        folder = self._folder / f"step_{step:07d}"
        # A step that is done again after a crash may have one already.
        with atomic_folder(folder, replace=True) as staged:
            self._write_files(staged, step, images, answers)

    def _write_files(
        self, folder: pathlib.Path, step: int, images: list[Image.Image], answers: list[str]
    ) -> None:
        """Writes the images, and answers.md, which shows them with prompts, questions and answers."""
        lines = [f"# Step {step}", ""]
        for i, (prompt, image) in enumerate(zip(self.prompts, images)):
            image.save(folder / f"{i}.png")
            lines += [f"![{_line(prompt)}]({i}.png) {_line(prompt)}", ""]
        for i, (question, answer) in enumerate(zip(self.questions, answers)):
            for j, image_part in enumerate(question.conversation.images):
                open_image(image_source(image_part)).save(folder / f"question_{i}_{j}.png")
                lines += [f"![](question_{i}_{j}.png)"]
            lines += [f"- asked: {_line(question.text)}", f"- answered: {_line(answer)}"]
            lines += [f"- in the data: {_line(question.truth)}"] if question.truth else []
            lines += [""]
        (folder / "answers.md").write_text("\n".join(lines), encoding="utf-8")


def first_of(sources: Iterable) -> Iterator[Conversation]:
    """The first SEARCHED conversations of each validation set, taken from the sets by turns."""
    for row in range(SEARCHED):
        for source in sources:
            if row < len(source):
                yield source.conversation(row)


def prompts_and_questions(
    conversations: Iterable[Conversation], count: int, is_usable: Callable[[Conversation], bool]
) -> tuple[list[str], list[Question]]:
    """The first `count` different prompts (a text that an image answers) and usable questions (a text
    answers)."""
    prompts: dict[str, None] = {}
    questions: dict[str, Question] = {}
    for conversation in conversations:
        first_turn, *later_turns = conversation.turns
        parts = later_turns[0].parts if later_turns else ()
        texts = [part for part in parts if isinstance(part, str)]
        text = len(texts) == len(parts)
        alone = dataclasses.replace(conversation, turns=(first_turn,))
        question = Question(alone, "".join(texts) if text else "")
        draws = not text or (not parts and question.text.startswith(TEXT_TO_IMAGE_INSTRUCTION))
        if not draws and len(questions) < count and is_usable(alone):
            questions.setdefault(conversation.source, question)
        elif draws and not alone.images and len(prompts) < count and is_usable(alone):
            prompts.setdefault(question.text)
    return list(prompts), list(questions.values())


def _line(text: str) -> str:
    """`text` in one line."""
    return " ".join(text.split())
