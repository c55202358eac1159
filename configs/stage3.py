"""Stage III (paper, section 3.2, Table 2): instruction following, 423 K conversations and 100 K images.

    unitoken train --config stage3 --workdir runs/stage3 --config.train.init_from=runs/stage2/model

The paper names no sets here: point the two paths at yours.
"""

import importlib

from ml_collections import ConfigDict

from unitoken_jax.train.optimizer import stage_groups


def get_config(model="unitoken_7b") -> ConfigDict:
    config = importlib.import_module(model).get_config()
    config.data = {
        "sources": [
            {"path": "data/instruct/conversations.jsonl", "weight": 423.0},
            {"path": "data/text_to_image/conversations.jsonl", "weight": 100.0},
        ],
        "mix": "examples",
        "row_length": 8192,
        "row_images": 8,
        "rows": 40,  # about 128 samples
    }
    config.optimizer = {"groups": stage_groups(3)}
    config.train = {"steps": 523_000 // 128}
    return config
