"""Benchmarks: each is a module that runs (`python -m benchmarks.overhead`); README.md says how to read them."""
