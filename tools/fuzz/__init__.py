"""Mutated files and requests of strangers: each ends in a good result or an EngineError, nothing else.

A kind of them is a module of this package (`kind.py` says what is in it); whoever adds one adds its file, no more.
"""
