"""Weights that somebody already has, for whatever program: recognised by what is in them, and linked, never copied."""

from .found import Found
from .linking import IMPORTED_FOLDER, Linked, linked_single_files, take_in
from .places import recognise

__all__ = ["IMPORTED_FOLDER", "Found", "Linked", "linked_single_files", "recognise", "take_in"]
