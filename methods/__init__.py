"""Explanation methods: one file each, found by listing this package.

A method is a frozen dataclass. Its fields are its hyper-parameters; called with a model, a batch
and a target it returns one score a token. To add one, add one file; see `xattn.registry`.
"""
