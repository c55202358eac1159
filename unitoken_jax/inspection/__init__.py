"""Looking inside: what training sees of a data set, where the decoder looks, how a converted model differs
from PyTorch's, and the loss of a conversation.
"""

from etils import epy

with epy.lazy_api_imports(globals()):
    from unitoken_jax.inspection.attention import attention_weights, example_of
    from unitoken_jax.inspection.score import score_file
    from unitoken_jax.inspection.show import image_sheet, inspect_data, token_kinds, token_runs
