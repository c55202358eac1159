"""Images and text to tokens: in comes a conversation, out comes an Example of token ids, labels, SigLIP crops
and the indices that say where each feature and VQ code goes. All geometry is decided here, with numpy alone.
"""

from etils import epy

with epy.lazy_api_imports(globals()):
    from unitoken_jax.sequence.build import (
        build_example,
        build_prompt,
        build_text_to_image_prompt,
        example_size,
    )
    from unitoken_jax.sequence.conversation import (
        Conversation,
        GeneratedImage,
        ImageFile,
        make_conversation,
    )
    from unitoken_jax.sequence.conversation_file import read_conversations
    from unitoken_jax.sequence.errors import ConversationError, RowError
    from unitoken_jax.sequence.example import Example, ExampleSize
    from unitoken_jax.sequence.image import ImageError, open_image
    from unitoken_jax.sequence.tokenizer import Tokenizer, train_tokenizer
    from unitoken_jax.sequence.vocabulary import Vocabulary
