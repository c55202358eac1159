"""MMMU: options, open questions turned into options, and images that stand inside the question."""

import dataclasses
import re
from collections.abc import Sequence

from PIL import Image

from unitoken_jax.evaluate.understanding.benchmark import CHOICE_COLUMNS, UnderstandingBenchmark
from unitoken_jax.evaluate.understanding.matching import MatchingRules, match_option
from unitoken_jax.evaluate.understanding.prompts import Template
from unitoken_jax.evaluate.understanding.scoring import Scored, by_column, checked_options, mean
from unitoken_jax.evaluate.understanding.table import IMAGE, PREDICTION, Table, TableError

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
            if not 1 <= int(image_number) <= len(images):
                message = f"{len(images)} images, but the text names <image {image_number}>"
                raise table.fault(number, IMAGE, message)
            parts.append(images[int(image_number) - 1])
            parts += [after] if after else []
        return parts

    def score_answers(self, table: Table, rules: MatchingRules) -> Scored:
        """Accuracy over the validation split, as far as the file says which rows these are.

        An open question, which has no options, gets two: A is the right answer, B "Other Answers".
        """
        matches, hits, lost = [], [], 0
        for number, row in enumerate(table.rows):
            gold = row["answer"]
            if row.get("A", "") != "":
                options = checked_options(table, number)
            else:
                if not gold:
                    raise table.fault(number, "answer", "empty")
                options = {"A": gold, "B": "Other Answers"}
                # VLMEvalKit keeps a capital letter as the wanted letter; so do we, to count as it does.
                letter = len(gold) == 1 and "A" <= gold <= "Z"
                lost += letter and gold != "A"
                gold = gold if letter else "A"
            matches.append(match_option(row[PREDICTION], options, rules))
            hits.append(matches[-1] == gold)
        numbers = list(range(len(hits)))
        notes = [f"{lost} open questions whose answer is a capital letter cannot be hit by this rule"] * bool(
            lost
        )
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
