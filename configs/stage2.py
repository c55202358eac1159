"""Stage II (paper, section 3.2, Tables 1 and 2): all parameters, understanding and text-to-image 1 : 1.

    unitoken train --config stage2 --workdir runs/stage2 --config.train.init_from=runs/stage1/model

Weights are the sample counts of Table 1, shares of examples; each path is a conversation file of yours.
MidJourney is not public.
"""

import importlib

from ml_collections import ConfigDict

from unitoken_jax.train.optimizer import stage_groups

THOUSANDS_OF_SAMPLES = {
    "sharegpt4v": 200,
    "sa1b_densecap": 100,
    "llava_1_6": 1500,
    "m3it": 920,
    "allava": 1350,
    "chartqa": 390,
    "ureader": 1100,
    "scigraphqa": 296,
    "geo170k": 118,
    "textocr": 25,
    "pdfa": 3000,
    "synthdog": 800,
    "websrc": 100,
    "midjourney": 10000,
}


def get_config(model="unitoken_7b") -> ConfigDict:
    config = importlib.import_module(model).get_config()
    config.data = {
        "sources": [
            {"path": f"data/{name}/conversations.jsonl", "weight": float(count)}
            for name, count in THOUSANDS_OF_SAMPLES.items()
        ],
        "mix": "examples",
        "row_length": 8192,
        "row_images": 8,
        "rows": 40,  # about 128 samples
    }
    config.optimizer = {"groups": stage_groups(2)}
    config.train = {"steps": sum(THOUSANDS_OF_SAMPLES.values()) * 1000 // 128}
    return config
