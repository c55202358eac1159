"""The loss of each conversation of a file."""

import json

import numpy as np
import pytest

from tests.helpers.host_data import TEXT, write_data
from tests.helpers.tiny_model import tiny_model
from unitoken_jax.inspection import score
from unitoken_jax.sequence.errors import RowError
from unitoken_jax.train.loss import LossSums


def test_a_bad_conversation_is_named_and_the_others_are_scored(tmp_path, monkeypatch):
    def sums(module, params, row):  # the real ones take seconds to compile
        return LossSums(row["tokens"].sum(), np.float32(0), np.float32(0), (row["labels"] >= 0).sum())

    monkeypatch.setattr(score, "_sums", sums)
    path = write_data(tmp_path, [TEXT] * 3)
    score.score_file(tiny_model(), path, tmp_path / "whole")
    whole = [json.loads(line) for line in (tmp_path / "whole").read_text().splitlines()]
    assert [row["index"] for row in whole] == [0, 1, 2]
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1].replace("two", r"\ud83d"), lines[2], '{"a": ']))
    with pytest.raises(RowError, match=r"data\.jsonl:2: the answer has .*\n2 of 4 conversations are bad; "):
        score.score_file(tiny_model(), path, tmp_path / "others")
    others = [json.loads(line) for line in (tmp_path / "others").read_text().splitlines()]
    assert others == [whole[0], whole[2]]
