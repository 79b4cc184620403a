"""The built-in FLUX family: true in its geometry, a few hundred thousand parameters, made by code in a second.

It lets everything around the models be run, tested and shown without a GPU and without a download. What it paints are
colour textures, not what the prompt says. Importing this package imports no torch; building does.
"""

from __future__ import annotations

from .cache import VERSION, build, ensure, is_demo

__all__ = ["VERSION", "build", "ensure", "is_demo"]
