"""Components in single files: recognised by their headers, and put together to models that can be loaded."""

from .assemble import assemble
from .collect import IMPORTED_FOLDER, linked_single_files, single_files
from .found import Component, Found, Part
from .recognise import SUFFIXES, recognise_file

__all__ = [
    "IMPORTED_FOLDER",
    "SUFFIXES",
    "Component",
    "Found",
    "Part",
    "assemble",
    "linked_single_files",
    "recognise_file",
    "single_files",
]
