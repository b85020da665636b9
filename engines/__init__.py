"""Engines: what runs the pieces of a bundle, one module per backend.

A backend module has one function that makes an opener, ``(bundle, …) → OpenEngine``.
"""
