"""Models of the wireless channel, their pre-training and their adaptation."""

import lazy_loader

# names are in __init__.pyi, and imported on first use: `lightning --help` must not wait for torch or a ray tracer
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
