"""Approximate search with FAISS, for indexes that are too large to be read for each question.

FAISS keeps all vectors in memory, with 8 bits for each value, in lists of similar vectors; a search
looks into some of the lists. The scores of what it finds are then computed exactly, from the index.

What FAISS has built is kept in the cache folder of the user, not in the index: an index may be from
somebody else, and FAISS reads its own files without checks.
"""

import hashlib
import os
import pathlib
import tempfile
from typing import Any

import numpy as np

from coco_jax.errors import UserError
from coco_jax.files import cache_folder
from coco_jax.recognition import index_store as store
from coco_jax.recognition.index import Hit, Index, keep_top

MIN_WINDOWS = 20_000  # with fewer, all vectors are compared
LISTS_SHARE = 16  # a search looks into 1/16 of the lists
TRAINING = 64  # the centres of N lists are computed from 64 N vectors
CANDIDATES = 8  # the scores of 8 x `top` windows are computed exactly


def search(index: Index, candidates: Any, top: int, found: Any = None) -> list[list[Hit]]:
    """As `Index.search`, but some of the best windows may be missing; the scores are exact.

    Args:
      index: of an archive.
      candidates: from `embed_actions` of the recogniser.
      top: number of windows.
      found: the result of `opened`, for many searches.

    Raises:
      UserError: FAISS is not installed, or the scores of these actions are not linear in the vectors.
    """
    table = index.recognizer.table(candidates)
    if table is None:
        raise UserError(
            "--faiss: in this model the scores of actions with descriptions are not a product of two "
            "vectors; leave out --descriptions or --faiss"
        )
    if not len(index):
        return [[] for _ in table.names]
    found = found or opened(index)
    count = min(CANDIDATES * top, len(index))
    _, row_KX = found.search(np.ascontiguousarray(table.vectors_KW, np.float32), count)
    hits = []
    for k, row_X in enumerate(row_KX):
        row_X = np.unique(row_X[row_X >= 0])  # -1: the lists had fewer
        score_X = index.stored.take(row_X) @ table.vectors_KW[k] + table.bias_K[k]
        hits.append(index.hits(*keep_top(score_X, row_X, top)))
    return hits


def opened(index: Index) -> Any:
    """FAISS's form of an index; built once for each content.

    Raises:
      UserError: FAISS is not installed, or the cache folder is not writable.
    """
    try:
        import faiss
    except ImportError as error:
        raise UserError('--faiss needs FAISS: pip install "coco_jax[faiss]"') from error
    head = (index.stored.folder / store.HEAD).read_bytes()  # has the hashes of all files
    path = cache_folder() / "faiss" / f"{hashlib.sha256(head).hexdigest()[:32]}.index"
    if path.is_file():
        return faiss.read_index(str(path))
    found = make(index)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            partial = pathlib.Path(folder) / path.name
            faiss.write_index(found, str(partial))
            os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # faiss raises RuntimeError if it cannot write
        raise UserError(
            f"{path}: cannot be written; set COCO_JAX_CACHE to another folder"
        ) from error
    return found


def make(index: Index) -> Any:
    """Builds FAISS's form of an index: lists of similar vectors with 8 bits for each value."""
    import faiss

    count, width = len(index), index.stored.settings.width
    lists = int(count**0.5)
    kind = f"IVF{lists},SQ8" if count >= MIN_WINDOWS else "SQ8"
    found: Any = faiss.index_factory(width, kind, faiss.METRIC_INNER_PRODUCT)
    rng = np.random.default_rng(0)
    sample = rng.choice(count, min(count, TRAINING * lists), replace=False)
    found.train(index.stored.take(np.sort(sample)))
    for _, rows_BW in index.stored.blocks(store.BLOCK):
        found.add(np.ascontiguousarray(rows_BW))
    if count >= MIN_WINDOWS:
        found.nprobe = -(-lists // LISTS_SHARE)
    return found
