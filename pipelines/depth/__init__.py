"""Photo → depth map. Near is bright, always."""

from .disparity import DisparityModel
from .estimator import DepthEstimator
from .load import load_estimator
from .maps import DepthMap, MapMode, scale_map

__all__ = ["DepthEstimator", "DepthMap", "DisparityModel", "MapMode", "load_estimator", "scale_map"]
