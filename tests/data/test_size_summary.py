"""The sizes of a data set's examples, by counting them one by one."""

import numpy as np
import pytest

from tests.helpers.host_data import DRAWING, QUESTION, TEXT, write_data
from tests.helpers.tiny_model import CONFIG, tiny_tokenizer
from unitoken_jax.config import SourceConfig
from unitoken_jax.data.held_out import part_rows
from unitoken_jax.data.index import open_index
from unitoken_jax.data.size_summary import summarize_sizes
from unitoken_jax.sequence import build
from unitoken_jax.sequence.example import ExampleSize

TOKENIZER = tiny_tokenizer()
KINDS = [QUESTION, DRAWING, TEXT, QUESTION] * 10


@pytest.fixture
def index(tmp_path):
    data = write_data(tmp_path, KINDS)
    with open(data, "a") as file:
        file.write("{}\n")
    return open_index(SourceConfig(str(data)), CONFIG, TOKENIZER, on_error=lambda error: None)


def test_the_sizes_of_all_examples(index):
    summary = summarize_sizes(index)
    sizes = [build.build_example(index.conversation(i), TOKENIZER, CONFIG).lengths for i in range(len(KINDS))]
    columns = [sorted(column) for column in zip(*sizes)]
    assert (summary.rows, summary.drawings) == (40, 10)
    assert summary.total == tuple(map(sum, columns))
    assert summary.largest == tuple(column[-1] for column in columns)
    assert summary.percentile_95 == tuple(column[37] for column in columns)  # 38 of 40 are at most this
    assert isinstance(summary.largest, ExampleSize)
    assert all(type(number) is int for number in summary.largest)


def test_the_parts_make_up_the_whole(index):
    parts = [SourceConfig(index.config.path, held_out=0.3, part=part) for part in ("training", "held_out")]
    training, held_out = (summarize_sizes(index, part_rows(index, part)) for part in parts)
    whole = summarize_sizes(index)
    assert training.rows + held_out.rows == whole.rows
    assert np.add(training.total, held_out.total).tolist() == list(whole.total)
    assert np.maximum(training.largest, held_out.largest).tolist() == list(whole.largest)
    with pytest.raises(ValueError, match=r"data\.jsonl: holds no usable conversation"):
        summarize_sizes(index, np.arange(len(index)) == len(KINDS))
