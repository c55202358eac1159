"""MME: yes-or-no questions, two an image, in 14 categories of up to 200 points."""

import dataclasses
from collections import defaultdict
from collections.abc import Mapping

from unitoken_jax.evaluate.understanding.benchmark import UnderstandingBenchmark
from unitoken_jax.evaluate.understanding.matching import MatchingRules
from unitoken_jax.evaluate.understanding.prompts import Template, short_text
from unitoken_jax.evaluate.understanding.scoring import Scored, match_yes_nos, mean
from unitoken_jax.evaluate.understanding.table import Table

PERCEPTION = (
    "OCR",
    "artwork",
    "celebrity",
    "color",
    "count",
    "existence",
    "landmark",
    "position",
    "posters",
    "scene",
)
REASONING = ("code_reasoning", "commonsense_reasoning", "numerical_calculation", "text_translation")


@dataclasses.dataclass(frozen=True)
class Mme(UnderstandingBenchmark):
    """The score is the sum of the categories' points, 2,800 at most."""

    def question_text(self, row: Mapping[str, str], template: Template) -> str:
        return short_text(row, template)

    def score_answers(self, table: Table, rules: MatchingRules) -> Scored:
        """A category's points: accuracy, and the share of images with both questions right, in percent."""
        matches, hits = match_yes_nos(table, rules)
        images: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        for number, row in enumerate(table.rows):
            if row["category"] not in PERCEPTION + REASONING:
                raise table.fault(number, "category", f"{row['category']!r} is none of MME's 14")
            images[row["category"]][row["image_path"]].append(number)
        points = {}
        for category, by_image in images.items():
            for path, numbers in by_image.items():
                if len(numbers) != 2:
                    raise table.fault(
                        numbers[-1],
                        "image_path",
                        f"{len(numbers)} questions about {path!r}; MME asks two an image",
                    )
            category_hits = [hits[number] for numbers in by_image.values() for number in numbers]
            both = [all(hits[number] for number in numbers) for numbers in by_image.values()]
            points[category] = mean(category_hits) + mean(both)
        parts, notes = {}, []
        for name, categories in (("perception", PERCEPTION), ("reasoning", REASONING)):
            if all(category in points for category in categories):
                parts[name] = sum(points[category] for category in categories)
        if len(parts) < 2:
            absent = [category for category in PERCEPTION + REASONING if category not in points]
            notes = [f"no total: the file lacks the categories {', '.join(absent)}"]
        total = None if notes else parts["perception"] + parts["reasoning"]
        return Scored(total, parts | points, matches, hits, notes)


MME = Mme("MME", ("MME",), "General", ("image_path", "answer", "category"), (None, None), per_point=28.0)
