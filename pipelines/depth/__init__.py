"""Photo → depth map. Near is bright, always."""

from .estimator import DepthEstimator
from .maps import DepthMap, MapMode

__all__ = ["DepthEstimator", "DepthMap", "MapMode"]
