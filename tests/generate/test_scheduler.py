"""Rows that are finished make room for the next prompts; memory is asked before it is taken."""

import numpy as np
import pytest

from tests.helpers.decoding import random_prompts
from tests.helpers.tiny_model import tiny_model
from unitoken_jax.generate import memory, row_pool, scheduler
from unitoken_jax.sequence.vocabulary import MODEL_CHOOSES


def _write(requests, batch, yield_every=None):
    requests = [request._replace(sampling=row_pool.TokenSampling(top_k=9)) for request in requests]
    session = scheduler.DecodeSession(tiny_model(), batch=batch)
    plan = row_pool.DecodePlan(np.full(16, MODEL_CHOOSES, np.int32), ends=1)
    return list(scheduler.complete(session, requests, plan, yield_every)), session.clock.timing


def test_finished_rows_are_refilled():
    limits = [2, 2, 2, 2, 2, 10, 1]
    prompts = random_prompts([30, 9, 20, 5, 40, 64, 3])
    requests = [row_pool.Request(p, (i, 0), limit) for i, (p, limit) in enumerate(zip(prompts, limits))]
    expected, _ = _write(requests, batch=8)
    written, timing = _write(requests, batch=2)
    assert all(one.done for one in written)
    tokens = {one.request: one.tokens.tolist() for one in written}
    assert tokens == {one.request: one.tokens.tolist() for one in expected}
    assert [len(tokens[i]) for i in range(7)] == limits
    # One row writes the long text, the other one meanwhile all the rest. In pairs it would take 11 passes.
    assert timing.passes == 9


def test_every_so_many_passes_there_is_news():
    requests = [row_pool.Request(p, (i, 0), 10) for i, p in enumerate(random_prompts([3, 4]))]
    written, _ = _write(requests, batch=2, yield_every=4)
    own = [one.tokens.tolist() for one in written if one.request == 0]
    assert [len(tokens) for tokens in own] == [5, 9, 10]
    assert own[2][:5] == own[0]


def test_longer_prompts_come_first_and_apart():
    requests = [row_pool.Request(p, (0, 0), 3) for p in random_prompts([3, 100, 5])]
    written, _ = _write(requests, batch=1)
    assert [one.request for one in written] == [1, 2, 0]


def test_a_cache_larger_than_memory_is_refused_with_the_figures(monkeypatch):
    model = tiny_model()
    assert memory.free_bytes(model) > 2**20
    per_token = 2 * 2 * 2 * 8 * 4  # k and v, layers, kv heads, head_dim, bytes
    assert memory.cache_bytes(model, 3, 100) == 300 * per_token
    monkeypatch.setattr(memory, "free_bytes", lambda model: 80 * per_token - 1)
    (prompt,) = random_prompts([60])
    with pytest.raises(
        ValueError, match=r"1 rows of 80 tokens \(prompts up to 64, 16 to write\).*20480 bytes"
    ):
        _write([row_pool.Request(prompt, (0, 0), 3)], batch=4)
