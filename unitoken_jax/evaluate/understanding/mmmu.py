"""MMMU: options, open questions turned into options, and images that stand inside the question."""

import dataclasses
import re
import string
from collections import Counter
from collections.abc import Sequence

from PIL import Image

from unitoken_jax.evaluate.understanding.benchmark import CHOICE_COLUMNS, UnderstandingBenchmark
from unitoken_jax.evaluate.understanding.matching import REFUSED, MatchingRules, match_option
from unitoken_jax.evaluate.understanding.prompts import Template, options_of
from unitoken_jax.evaluate.understanding.scoring import Scored, by_column, checked_options, mean
from unitoken_jax.evaluate.understanding.table import IMAGE, PREDICTION, Table, TableError

# What becomes of open questions whose answer is a capital letter, by letter.
_LETTERS = {
    "lost": "whose answer is a capital letter cannot be hit by this rule",
    "B": 'whose answer is B are hit by "B" and "Other Answers"',
    REFUSED: "whose answer is Z are hit by what names no option",
}
_IMAGE_MARK = re.compile(r"<image (\d+)>")


@dataclasses.dataclass(frozen=True)
class Mmmu(UnderstandingBenchmark):
    """The score is the accuracy on the validation split."""

    def question_parts(
        self, table: Table, number: int, images: Sequence[Image.Image], template: Template
    ) -> list[str | Image.Image]:
        """Row `number`'s images where the text's `<image N>` stand, else before the text.

        Raises TableError where the text names an image that the row does not have.
        """
        text = self.question_text(table.rows[number], template)
        if not _IMAGE_MARK.search(text):
            return [*images, text]
        parts: list[str | Image.Image] = []
        before, *marked = _IMAGE_MARK.split(text)  # text, then image number and text in alternation
        parts += [before] if before else []
        for image_number, after in zip(marked[::2], marked[1::2]):
            with table.reading(number, IMAGE):
                position = int(image_number)
            if not 1 <= position <= len(images):
                message = f"{len(images)} images, but the text names <image {image_number}>"
                raise table.fault(number, IMAGE, message)
            parts.append(images[position - 1])
            parts += [after] if after else []
        return parts

    def score_answers(self, table: Table, rules: MatchingRules) -> Scored:
        """Accuracy over the validation split, as far as the file says which rows these are.

        An open question, which has no option A, gets two: A is the right answer, B "Other Answers". As in
        VLMEvalKit, a capital letter stays the wanted letter all the same, and what names no option counts
        as Z (its `MMMU_preproc`, `mcq_vanilla_eval` and `extract_answer_from_item`).
        """
        matches, hits, letters = [], [], Counter[str]()
        for number, row in enumerate(table.rows):
            gold = row["answer"]
            if row.get("A", "") != "":
                options = checked_options(table, number)
            else:
                if not gold:
                    raise table.fault(number, "answer", "empty")
                options = options_of(row) | {"A": gold, "B": "Other Answers"}
                if gold in tuple(string.ascii_uppercase):
                    letters[gold if gold in (*options, REFUSED) else "lost"] += 1
                else:
                    gold = "A"
            matches.append(match_option(row[PREDICTION], options, rules))
            hits.append((matches[-1] or REFUSED) == gold)
        numbers = list(range(len(hits)))
        notes = [f"{letters[kind]} open questions {_LETTERS[kind]}" for kind in _LETTERS if letters[kind]]
        if "split" in table.columns:
            numbers = [number for number in numbers if table.rows[number]["split"] == "validation"]
            if not numbers:
                raise TableError(
                    f"{table.path}: no row has 'validation' in column 'split', which MMMU reports"
                )
        else:
            notes.append("no column 'split': all rows count, the paper's number is the validation split's")
        parts = by_column(table, "split", range(len(hits)), hits)
        counted = [hits[number] for number in numbers]
        for column in ("l2-category", "category"):
            parts |= by_column(table, column, numbers, counted)
        return Scored(mean(counted), parts, matches, hits, notes)


MMMU = Mmmu("MMMU", ("MMMU_DEV_VAL",), "General", CHOICE_COLUMNS, (34.2, 32.8))
