"""Files as benchmarks have them: tab-separated tables with images, and lists of prompts."""

import base64
import csv
import io

from tests.helpers.tiny_model import noise

MMMU_HEADER = ["index", "image", "question", "hint", "A", "B", "answer", "split"]


def base64_image(seed=0, format="PNG", mode="RGB"):
    """A small image of noise, as a table's cell."""
    buffer = io.BytesIO()
    noise(seed).convert(mode).save(buffer, format)
    return base64.b64encode(buffer.getvalue()).decode()


def write_tsv(path, *rows):
    """Writes tab-separated `rows`, the header first; `path`."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter="\t", lineterminator="\n").writerows(rows)
    return path


def mmmu_rows():
    """Six rows under MMMU_HEADER: an image each, an open question that shares one, two images in one row."""
    rows = [
        [
            str(i),
            base64_image(i),
            f"what is this {i}? <image 1>",
            "",
            "red",
            "blue",
            "AB"[i % 2],
            "validation",
        ]
        for i, answer in enumerate("ABAB")
    ]
    rows.append(["4", "0", "how many? ", "a hint", "", "", "3", "validation"])
    both = str([base64_image(0), base64_image(1)])
    rows.append(["5", both, "<image 2> or <image 1>?", "", "red", "blue", "A", "dev"])
    return rows


def geneval_line(prompt):
    """A line of GenEval's evaluation_metadata.jsonl."""
    return f'{{"tag": "single_object",  "include": [{{"class": "bench", "count": 1}}], "prompt": "{prompt}"}}'


def write_lines(path, *lines):
    """Writes `lines`, each ended; `path`."""
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
