"""Where model weights come from: what lies on disk, and the small family that is built by code."""
