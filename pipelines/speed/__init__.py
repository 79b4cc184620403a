"""What makes drawing faster, each thing by itself: tiers, attention kernels, compiled blocks, step cache, pace.

`tiers` is torch-free.
"""
