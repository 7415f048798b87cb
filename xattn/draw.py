"""Random numbers that belong to a text: the same in every batch, run and process."""

from __future__ import annotations

import hashlib

import numpy as np

from xattn.types import Encoding


def generator(encoding: Encoding, *seeds: int) -> np.random.Generator:
    """Return a generator that is decided by seeds and by what the model reads of a text.

    Parameters
    ----------
    encoding : Encoding
    *seeds : int
    """
    digest = hashlib.sha256(str(seeds).encode())
    for name in sorted(encoding.row):
        digest.update(name.encode() + encoding.row[name].tobytes())
    return np.random.default_rng(int.from_bytes(digest.digest()[:8], "big"))
