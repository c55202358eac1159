"""YOUR FILES + A MODEL -> AN ADAPTER, OR A MODEL: what a fine-tuning run needs is chosen from the data."""

from unitoken_jax.finetune.options import FinetuneOptions as FinetuneOptions
