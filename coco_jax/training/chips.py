"""Peak FLOP/s, memory and link bandwidth of accelerators, and model FLOPs utilisation (MFU).

Values are per JAX device, from docs.cloud.google.com/tpu/docs/v5e, /v5p and /v6e, and from NVIDIA's data
sheets of A100 (80 GB SXM), H100 (SXM) and H200, for dense bfloat16.
"""

from typing import NamedTuple


class Chip(NamedTuple):
    """Peak values of one device."""

    flops: float  # bfloat16 FLOP/s
    memory: float  # bytes
    # Bytes/s sent to other chips over all links (TPU: half of the "bidirectional" bandwidth).
    link: float
    # FLOP per cycle of all matrix units (TPU: 2 x side^2 x units), to convert the compiler's cycles to
    # seconds: clock = flops / per_cycle, which is 1.5 GHz on v5e, 1.75 GHz on v5p and v6e.
    per_cycle: float = 0.0

    @property
    def clock(self) -> float:
        """Hz; 0 if the compiler of this device estimates no cycles."""
        return self.flops / self.per_cycle if self.per_cycle else 0.0


CHIPS = {  # by jax.Device.device_kind
    "TPU v5 lite": Chip(197e12, 16 << 30, 200e9, 2 * 4 * 128**2),
    "TPU v5": Chip(459e12, 95 << 30, 300e9, 2 * 8 * 128**2),
    "TPU v6 lite": Chip(918e12, 32 << 30, 400e9, 2 * 4 * 256**2),
    "NVIDIA A100-SXM4-80GB": Chip(312e12, 80 << 30, 300e9),
    "NVIDIA H100 80GB HBM3": Chip(989e12, 80 << 30, 450e9),
    "NVIDIA H200": Chip(989e12, 141e9, 450e9),
}


def mfu(model_flops: float, seconds: float, kind: str) -> float | None:
    """Model FLOPs utilisation (PaLM, arXiv 2204.02311, appendix B), in [0, 1].

    Args:
      model_flops: FLOPs that the model needs per device and step, without recomputation.
      seconds: duration of the step.
      kind: `jax.Device.device_kind`.

    Returns:
      The achieved share of the device's peak FLOP/s; None if the device is not in `CHIPS`.
    """
    chip = CHIPS.get(kind)
    return model_flops / seconds / chip.flops if chip and seconds > 0 else None
