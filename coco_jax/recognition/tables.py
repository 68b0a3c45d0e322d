"""Raw scores as matrix products: vectors of clips as rows, and actions as a table."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float


class Table(NamedTuple):
    """Embedded actions; `VideoRanker.table` makes it."""

    names: tuple[str, ...]
    vectors_KW: Float[np.ndarray, "K W"]
    bias_K: Float[np.ndarray, " K"]

    def scores(self, rows_NW: Float[np.ndarray, "N W"]) -> Float[np.ndarray, "N K"]:
        """The raw scores of rows that `VideoRanker.rows` made."""
        return rows_NW @ self.vectors_KW.T + self.bias_K


def fingerprint(arrays: Mapping[str, Any], settings: Any) -> str:
    """A SHA-256 of arrays and of settings (JSON)."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name in sorted(arrays):
        x = np.asarray(arrays[name], order="C")
        digest.update(f"\n{name} {x.dtype} {x.shape}\n".encode())
        digest.update(x.tobytes())
    return digest.hexdigest()
