"""Zero-shot action recognition in JAX: CoCo and ActionHub (arXiv 2401.11654)."""

__version__ = "0.1.0"
