"""The small world's benchmarks as files; `scenes.benchmark` says what they hold, and writes them."""

import pathlib

FOLDER = pathlib.Path(__file__).parent
QUESTIONS_FILE, PROMPTS_FILE = FOLDER / "Scenes.tsv", FOLDER / "DrawScenes.jsonl"
