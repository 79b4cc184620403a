"""Weights that somebody already has, for whatever program: recognised by what is in them, and linked, never copied."""

from ..single_files import IMPORTED_FOLDER, Found, linked_single_files
from .linking import Linked, take_in
from .places import recognise

__all__ = ["IMPORTED_FOLDER", "Found", "Linked", "linked_single_files", "recognise", "take_in"]
