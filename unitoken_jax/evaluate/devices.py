"""A model directory on every device of this process."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unitoken_jax.unitoken import UniToken


def load_model(
    model: str | os.PathLike | None, dtype: str | None = None, adapter: str | os.PathLike | None = None
) -> "UniToken":
    """`UniToken.load` of them; where there are several devices, weights and rows are spread over them.

    It reads a benchmark's texts literally: one that spells a control token's name is text, and not refused.
    Raises ValueError in a run of several processes: each would write the same files.
    """
    import jax

    from unitoken_jax.model.sharding import make_mesh
    from unitoken_jax.unitoken import UniToken

    if jax.process_count() > 1:
        raise ValueError(
            f"evaluation runs in one process, this run has {jax.process_count()}: start one a benchmark or "
            "prompt list, each with the devices it shall use"
        )
    mesh = make_mesh() if jax.device_count() > 1 else None
    loaded = UniToken.load(model, mesh=mesh, dtype=dtype, adapter=adapter)
    loaded.tokenizer = loaded.tokenizer.literal()
    return loaded
