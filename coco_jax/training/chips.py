"""What accelerators can do at best: the yardstick of model FLOPs utilisation and of what fits.

Figures per device as JAX counts them, from the makers' pages: docs.cloud.google.com/tpu/docs/v5e, /v5p
and /v6e; NVIDIA's data sheets of A100 (80 GB SXM), H100 (SXM) and H200, dense bfloat16.
"""

from typing import NamedTuple


class Chip(NamedTuple):
    """The best that one device does."""

    flops: float  # bfloat16 FLOP a second
    memory: float  # bytes
    link: (
        float  # bytes a second that it sends to other chips at once (TPU: half of "bidirectional")
    )
    # FLOP a cycle of all its matrix units (TPU: 2 x side^2 x units); what turns the compiler's cycles
    # into seconds: clock = flops / per_cycle, 1.5 GHz on v5e, 1.75 GHz on v5p and v6e.
    per_cycle: float = 0.0

    @property
    def clock(self) -> float:
        """Hz; 0 where the compiler gives no cycles."""
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
    """The share of a device's peak that the model's own FLOPs are; None of a device not known here.

    Args:
      model_flops: what one device's share of a step needs, nothing computed twice.
      seconds: what the step took.
      kind: `jax.Device.device_kind`.
    """
    chip = CHIPS.get(kind)
    return model_flops / seconds / chip.flops if chip and seconds > 0 else None
