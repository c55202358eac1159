"""Logits to tokens, and tokens to images and text: a model's runtime, sampling, the loop that decodes many
prompts through few rows, and what draws, answers and chats with it.
"""

from etils import epy

with epy.lazy_api_imports(globals()):
    from unitoken_jax.generate.chat import ChatResult
    from unitoken_jax.generate.grammar import ImageGrammar, image_grammar
    from unitoken_jax.generate.image import ImageResult, draw
    from unitoken_jax.generate.runtime import Runtime
    from unitoken_jax.generate.text import TextResult, answer, stream
    from unitoken_jax.generate.timing import Timing
    from unitoken_jax.generate.vq import decode_codes, encode_images
