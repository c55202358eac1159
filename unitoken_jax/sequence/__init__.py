"""Images and text to tokens: in comes a conversation, out comes an Example of token ids, labels, SigLIP crops
and the indices that say where each feature and VQ code goes. All geometry is decided here, with numpy alone.
"""

import importlib

# Each public name and the module that holds it, which is imported when the name is first asked for.
_MODULES = {
    "Conversation": "conversation",
    "ConversationError": "conversation",
    "Example": "build",
    "ExampleSize": "build",
    "GeneratedImage": "conversation",
    "ImageError": "image",
    "ImageFile": "conversation",
    "Tokenizer": "tokenizer",
    "Vocabulary": "vocabulary",
    "build_example": "build",
    "build_prompt": "build",
    "build_text_to_image_prompt": "build",
    "example_size": "build",
    "make_conversation": "conversation",
    "open_image": "image",
    "read_conversations": "conversation_file",
    "train_tokenizer": "tokenizer",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_MODULES)
