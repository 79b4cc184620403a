"""What can go wrong with weights on their way to the disk, as one tree.

WeightsError
├── UnknownModel          no model has that name
├── LicenceNotAccepted    the licence was not agreed to, or there was nobody to ask
├── AccessNeeded          the hub lets in only those who accepted the terms on a page, with a token
├── NotOnHub              repository, revision or file is not there
├── HubUnreachable        no answer, or only errors, after several tries
├── NotPullable           what the hub offers cannot be used: pickles, or no safetensors
├── WrongContent          the bytes are not those that were published
├── NoSpace               the disk is or would be full
└── Busy                  another process changes the same folder

The text of each says what to do. WeightsMissing (locate) and Broken (headers) are about what already lies on disk.
"""

from __future__ import annotations


class WeightsError(Exception):
    """Weights could not be fetched, checked or linked."""


class UnknownModel(WeightsError):
    """No model has that name."""


class LicenceNotAccepted(WeightsError):
    """A licence was not accepted."""


class AccessNeeded(WeightsError):
    """The hub refuses this repository to whoever asks now."""


class NotOnHub(WeightsError):
    """The hub does not have that."""


class HubUnreachable(WeightsError):
    """The hub did not answer as it should, also when asked again."""


class NotPullable(WeightsError):
    """The hub has it in a form that is not fetched."""


class WrongContent(WeightsError):
    """A file is not the one that was published."""


class NoSpace(WeightsError):
    """There is not enough room on the disk."""


class Busy(WeightsError):
    """Another process works on the same weights folder."""
