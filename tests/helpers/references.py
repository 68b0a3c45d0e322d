"""Prepares the import of the reference implementations; import this module before them."""

import importlib.util


def _define_torchvision_operators() -> None:
    """Makes it possible to import torchvision with a CPU build of torch.

    PyPI's torchvision is built for CUDA. With a CPU build of torch its operators cannot be loaded, and
    its import fails because they are not defined. The references import torchvision, but do not use
    these operators, so it is enough to define their names.
    """
    if not importlib.util.find_spec("torch") or not importlib.util.find_spec("torchvision"):
        return
    import torch

    if "+cpu" in torch.__version__:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _LIBRARIES.append(library)  # operators exist only as long as their library


_LIBRARIES: list = []
_define_torchvision_operators()
