"""A second copy of a network that shares the first one's values."""

from __future__ import annotations

import copy
from itertools import chain
from typing import Any


def share_weights(module: Any) -> Any:
    """The same modules once more, with the very same tensors in them.

    Moving either of the two to another device or dtype parts them.
    """
    shared = {id(tensor): tensor for tensor in chain(module.parameters(), module.buffers())}
    return copy.deepcopy(module, shared)
