"""Stage I (paper, section 3.2, Table 2): align SigLIP and adapter with the frozen decoder on 2.5 M captions.

    unitoken train --config stage1 --workdir runs/stage1 --config.train.init_from=MODEL
    unitoken train --config stage1:unitoken_34b ...

The shares are the paper's, counted in samples; each path is a conversation file of yours.
"""

import importlib

from ml_collections import ConfigDict

from unitoken_jax.train.optimizer import stage_groups

SAMPLES = 2_500_000
SOURCES = {"sharegpt4v": 49.5, "llava": 22.2, "allava": 28.2}


def get_config(model="unitoken_7b") -> ConfigDict:
    config = importlib.import_module(model).get_config()
    config.data = {
        "sources": [
            {"path": f"data/{name}/conversations.jsonl", "weight": share} for name, share in SOURCES.items()
        ],
        "mix": "examples",
        "row_length": 8192,  # the longest samples take 6,300; see benchmarks/RESULTS.md for other lengths
        "row_prefix": 2048,  # see benchmarks/RESULTS.md: 0.64 of stage II in FLOPs a sample
        "row_images": 8,
        "rows": 80,  # about 128 of the paper's samples
    }
    config.optimizer = {"groups": stage_groups(1)}
    config.train = {"steps": SAMPLES // 128}
    return config
