"""UniToken on Chameleon-34B, the paper's first scaling direction (section 5)."""

from ml_collections import ConfigDict


def get_config(_=None) -> ConfigDict:
    return ConfigDict(
        {
            "model": {
                "decoder": {
                    "width": 8192,
                    "depth": 48,
                    "heads": 64,
                    "kv_heads": 8,
                    "mlp": 22016,
                    "qk_norm_shards": 4,
                    "norm": "output",
                }
            }
        }
    )
