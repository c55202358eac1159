"""Model directories and the parameters in them: in come a config, parameters and a tokenizer, out comes a
folder that is all a model needs, read whole or parameter by parameter.
"""

from etils import epy

with epy.lazy_api_imports(globals()):
    from unitoken_jax.checkpoint.adapter import Adapter, Base, load_adapter, save_adapter
    from unitoken_jax.checkpoint.half_precision import to_float16
    from unitoken_jax.checkpoint.merge import merge_adapter
    from unitoken_jax.checkpoint.model_directory import (
        LoadedModel,
        is_model_dir,
        load_model,
        load_settings,
        open_model,
        save_model,
    )
    from unitoken_jax.checkpoint.param_store import ArraySpec, ParamStore, StoredParams
    from unitoken_jax.checkpoint.quantization import quantize_model
