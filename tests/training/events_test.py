"""Events that TensorFlow, the reference, reads back."""

import subprocess
import sys

import numpy as np
import pytest

from coco_jax.training.events import EventWriter
from tests.helpers import runs


def test_tensorflow_reads_the_scalars(tmp_path):
    import tensorflow as tf

    folder = tmp_path / "new"
    first, second = EventWriter(folder), EventWriter(folder)
    first.write_scalars(3, {"loss": 1.5, "seconds/step": np.float32(0.25)})
    second.write_scalars(4, {"loss": float("nan")})
    (one, two) = sorted(folder.glob("events.out.tfevents.*"), key=lambda p: p.stat().st_size)[::-1]
    version, event = tf.compat.v1.train.summary_iterator(str(one))  # readable before it is closed
    assert version.file_version == "brain.Event:2" and event.step == 3
    found = {v.tag: float(tf.make_ndarray(v.tensor)) for v in event.summary.value}
    assert found == {"loss": 1.5, "seconds/step": 0.25}
    assert {v.metadata.plugin_data.plugin_name for v in event.summary.value} == {"scalars"}
    first.close()
    first.close()
    with pytest.raises(ValueError, match="closed"):
        first.write_scalars(5, {"loss": 1.0})
    second.close()
    assert np.isnan(runs.losses(folder)[4]) and runs.losses(folder)[3] == 1.5
    assert two.stat().st_size > 0


def test_tensorflow_is_not_imported(tmp_path):
    program = (
        "import sys; from coco_jax.training.events import EventWriter; "
        f"EventWriter({str(tmp_path)!r}).write_scalars(1, {{'loss': 1}}); "
        "assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=runs.ROOT)
