"""Tokens to logits, and pixels to codes and back: the networks as linen modules, pure functions of a plain
tree of parameters, with the attention kernels, the KV cache and the table that lays arrays out on a mesh.
"""

from etils import epy

with epy.lazy_api_imports(globals()):
    from unitoken_jax.model.decoder import Cache, stack_layers, unstack_layers
    from unitoken_jax.model.init import abstract_params, init_params
    from unitoken_jax.model.sharding import make_mesh
    from unitoken_jax.model.unitoken import UniTokenModel, insert_vq_tokens
    from unitoken_jax.model.vqgan import VQModel
