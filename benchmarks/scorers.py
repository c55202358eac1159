"""Our matching and scoring against VLMEvalKit's own functions, on random answers and files.

    pip download --no-deps ms-vlmeval && python -m zipfile -e ms_vlmeval-*.whl FOLDER
    pip install pandas && python benchmarks/scorers.py FOLDER/vlmeval vlmevalkit-2025-08

FOLDER/vlmeval may also be a checkout's, of the date that the rules' name says: ms-vlmeval 0.0.16 for
vlmevalkit-2025-03, 0.0.19 or 0.0.20 for vlmevalkit-2025-08. Its modules import far more than their rules
need, so the functions are run one by one from their source.
"""

import ast
import collections
import copy
import logging
import os
import pathlib
import random
import re
import string
import sys

import numpy as np
import pandas as pd

from unitoken_jax.evaluate.registry import find_understanding
from unitoken_jax.evaluate.understanding.matching import find_rules, match_option, match_yes_no
from unitoken_jax.evaluate.understanding.mme import PERCEPTION, REASONING
from unitoken_jax.evaluate.understanding.table import Table

ANSWERS, FILES = 200_000, 200
OPTIONS = {"A": "a red cat", "B": "blue", "C": "none of it", "D": "a red cat and dog"}
OPTION_WORDS = (
    "A B C D E Z a red cat blue Blue dog and none of it (A) B. **C** D: A,B answer is the - \n 选项 \u0130"
)
YES_NO_WORDS = (
    'yes no Yes No yes. no, not 1,000 - yes- / yes/no . 5 yes.5 .no ! (yes) "no" ? it '
    "\n _ 1. \u0663. ........"
)
LENGTHS = (0, 1, 2, 3, 5, 8, 20, 60)  # words of a random answer
REPLIES = ("Yes", "No.", "yes, it is", "hm")
MMMU_REPLIES = (
    *(
        "A",
        "B",
        "C",
        "Z",
        "Other Answers",
        "3",
        "cat",
        "it is a cat",
        "no idea",
        "(C)",
        "D or E",
        "cat " * 20,
    ),
    *("B is the right one because of it all", "Cannot determine the answer"),
)


def functions(path: pathlib.Path, *names: str, **namespace) -> dict:
    """The functions `names` of source file `path`, with `known` as what else they see."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    definitions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in names]
    space = {"pd": pd, "np": np, "re": re, "string": string, "os": os, "cp": copy, **namespace}
    space |= {
        "defaultdict": collections.defaultdict,
        "load": lambda data: data,
        "d2df": lambda values: values,
    }
    exec(compile(ast.Module(definitions, []), str(path), "exec"), space)
    return space


def differing(ours, theirs, words: str) -> str:
    rng, differ, matched = random.Random(0), [], 0
    for _ in range(ANSWERS):
        text = rng.choice((" ", " ", "", ". ")).join(rng.choices(words.split(" "), k=rng.choice(LENGTHS)))
        our_match, their_match = ours(text), theirs(text)
        matched += our_match is not None
        if our_match != their_match:
            differ.append((text, our_match, their_match))
    shown = f", for example {differ[0]!r}" if differ else ""
    return f"{len(differ)} of {ANSWERS} differ ({matched} matched){shown}"


def table_of(rows: list[dict]) -> Table:
    return Table(pathlib.Path("rows"), tuple(rows[0]), rows, list(range(2, 2 + len(rows))))


def mme_rows(rng: random.Random) -> list[dict]:
    pairs = [(c, i) for c in PERCEPTION + REASONING for i in range(rng.randint(1, 4)) for _ in range(2)]
    return [
        {"index": str(n), "category": c, "image_path": str(i), **yes_no(rng)}
        for n, (c, i) in enumerate(pairs)
    ]


def hallusion_rows(rng: random.Random) -> list[dict]:
    numbers = [(c, s, f, q) for c in ("a", "b") for s in range(3) for f in range(2) for q in range(2)]
    return [
        {"index": f"h_v_{c}_{s}_{f}_{q}", "l2-category": c, **yes_no(rng)}
        for c, s, f, q in numbers
        if rng.random() < 0.8
    ]


def yes_no(rng: random.Random) -> dict:
    return {"question": "?", "answer": rng.choice(("Yes", "No")), "prediction": rng.choice(REPLIES)}


def circular_rows(rng: random.Random) -> list[dict]:
    rows = []
    for question in range(1, 6):
        for rotation in range(rng.randint(1, 4)):
            gold = rng.choice("AB")
            prediction = rng.choice((gold, gold, gold, gold, "a cat", "A", "who", "Z"))
            rows.append({"index": str(question + rotation * 1_000_000), "A": "cat", "B": "dog"})
            rows[-1] |= {"question": "?", "answer": gold, "prediction": prediction}
    return rows


def mmmu_rows(rng: random.Random) -> list[dict]:
    """Questions with options, and open ones, whose answers are letters too."""
    rows = []
    for number in range(12):
        options = {"A": rng.choice(("", "cat")), "B": "dog", "C": rng.choice(("", "bird"))}
        letters = [letter for letter, text in options.items() if text]
        gold = rng.choice(letters if options["A"] else ("A", "B", "C", "D", "Z", "3", "cat", "AB"))
        rows.append({"index": str(number), "question": "?", "split": "validation", **options})
        rows[-1] |= {"answer": gold, "prediction": rng.choice(MMMU_REPLIES)}
    return rows


def mmmu_score(choices: dict, rows: list[dict]) -> float:
    """The score by VLMEvalKit's functions `choices`."""
    frame = pd.DataFrame([{name: cell or np.nan for name, cell in row.items()} for row in rows])
    wanted = [gold if gold in (*string.ascii_uppercase,) else "A" for gold in frame["answer"]]
    frame = choices["MMMU_preproc"](frame)
    frame["GT"] = wanted
    return 100 * np.mean([choices["eval_vanilla"](None, frame.iloc[n])["hit"] for n in range(len(frame))])


def hallusion_pairs(parts: dict, theirs: pd.DataFrame) -> list[tuple[float, float]]:
    """(ours, theirs) of each accuracy: of all rows, then of each l2-category."""
    named = {"Overall": ""} | {name: f"l2-category: {name}, " for name in theirs["split"][1:]}
    accuracies = ("aAcc", "fAcc", "qAcc")
    return [
        (parts[named[line["split"]] + name], line[name])
        for _, line in theirs.iterrows()
        for name in accuracies
    ]


def main(folder: pathlib.Path, name_of_rules: str) -> None:
    rules = find_rules(name_of_rules)
    utils = folder / "dataset" / "utils"
    names = ("can_infer", "can_infer_option", "can_infer_text")
    infer = functions(folder / "utils" / "matching_util.py", *names)["can_infer"]
    punctuation = functions(folder / "smp" / "misc.py", "process_punctuation")
    if "process_punctuation" not in punctuation:
        punctuation = functions(utils / "vqa_eval.py", "process_punctuation")
    names = ("YOrN_Extraction", "MME_rating", "Hallusion_rating")
    rated = functions(utils / "yorn.py", *names, process_punctuation=punctuation["process_punctuation"])
    names = ("build_choices", "prefetch_answer", "prefetch_circular_group")
    names += ("MMMU_preproc", "extract_answer_from_item", "eval_vanilla")
    # What they need for a judge's prompt, which is never asked here.
    judge = {"build_option_str": str, "cn_string": lambda _: False, "build_prompt": lambda *_: ""}
    logs = {"get_logger": logging.getLogger, "logger": logging.getLogger()}
    choices = functions(utils / "multiple_choice.py", *names, can_infer=infer, **judge, **logs)
    group = choices["prefetch_circular_group"]

    def own_option(text):
        return match_option(text, OPTIONS, rules)

    def own_yes_no(text):
        return match_yes_no(text, rules)

    def extracted(text):
        return {"Unknown": None}.get(answer := rated["YOrN_Extraction"](text), answer)

    print("options:", differing(own_option, lambda text: infer(text, dict(OPTIONS)) or None, OPTION_WORDS))
    print("yes or no:", differing(own_yes_no, extracted, YES_NO_WORDS))
    apart = collections.defaultdict(float)
    for seed in range(FILES):
        for name, rows in (
            ("MME", mme_rows),
            ("HallusionBench", hallusion_rows),
            ("MMBench_EN", circular_rows),
            ("MMMU", mmmu_rows),
        ):
            table_rows = rows(random.Random(seed))
            scored = find_understanding(name)[0].score(table_of(table_rows), rules)
            frame = pd.DataFrame(table_rows)
            frame["score"] = [extracted(row["prediction"]) == row["answer"] for row in table_rows]
            if name == "MME":
                theirs = rated["MME_rating"](frame)
                pairs = [(scored.parts[key], value) for key, value in theirs.items()]
            elif name == "HallusionBench":
                pairs = hallusion_pairs(scored.parts, rated["Hallusion_rating"](frame))
            elif name == "MMMU":
                pairs = [(scored.score, mmmu_score(choices, table_rows))]
            else:
                frame["GT"], main_index = frame["answer"], frame["index"].astype(int) % 1_000_000
                hits = [(group(frame[main_index == one]) or {"hit": 0})["hit"] for one in main_index.unique()]
                pairs = [(scored.score, 100 * np.mean(hits))]
            apart[name] = max(apart[name], *(abs(one - other) for one, other in pairs))
    for name, largest in apart.items():
        print(f"{name}: largest difference in {FILES} files {largest:.1e}")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), sys.argv[2])
