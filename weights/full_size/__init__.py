"""The published models in full size but without their weights: for counting, for checking files against them, and, with
random values, for measuring time and memory. Importing this package imports no torch."""

from .configurations import COMPONENTS, SCHEDULER, Component
from .modules import build_on_meta, materialise

__all__ = ["COMPONENTS", "SCHEDULER", "Component", "build_on_meta", "materialise"]
