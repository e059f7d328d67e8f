"""GPT4RoI: ask about regions of a picture, and get answers in language.

    import gpt4roi

    model = gpt4roi.load()                        # the small model inside; or gpt4roi.load("models/gpt4roi-7b")
    chat = model.chat("street.jpg")               # looks at the picture once
    rider = chat.add_region([40, 60, 210, 300])   # left, top, right, bottom, in pixels
    print(chat.ask(f"What is {rider} doing?"))

What the model or its files can't do is a gpt4roi.Error, arguments that can't be are a ValueError or a TypeError, and
files that can't be read an OSError.
"""

from ._gpt4roi import (
    Answer,
    Chat,
    Chosen,
    Error,
    Model,
    Region,
    ScoredChoice,
    Stream,
    __version__,
    load,
)

__all__ = [
    "Answer",
    "Chat",
    "Chosen",
    "Error",
    "Model",
    "Region",
    "ScoredChoice",
    "Stream",
    "__version__",
    "load",
]
