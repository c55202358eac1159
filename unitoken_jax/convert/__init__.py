"""Published PyTorch weights to a model directory, and back; adapters from and to the files of `peft`. Torch
is never imported: `convert/torch` reads and writes its files with numpy alone, by one table of names for both
directions.
"""

from etils import epy

with epy.lazy_api_imports(globals()):
    from unitoken_jax.convert.from_torch import ConvertOptions, convert, inspect
    from unitoken_jax.convert.peft import export_peft, import_peft
    from unitoken_jax.convert.to_torch import export
    from unitoken_jax.convert.torch.report import ConversionError
