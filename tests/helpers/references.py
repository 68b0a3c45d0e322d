"""What the references need; imported before them."""

import importlib.util


def _name_torchvision_s_operators() -> None:
    """Lets torchvision be imported beside a CPU build of torch.

    PyPI's torchvision is built for CUDA; beside a CPU torch its operators do not load, and its
    import fails over their missing names. The references import it and use none of them.
    """
    if not importlib.util.find_spec("torch") or not importlib.util.find_spec("torchvision"):
        return
    import torch

    if "+cpu" in torch.__version__:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)  # a library takes its operators with it


_KEPT: list = []
_name_torchvision_s_operators()
