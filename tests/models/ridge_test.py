"""The closed form against numpy, and its gradient against finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from coco_jax.models import ridge

WEIGHTS = np.array([1.0, 0.5, 4.0], np.float32)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.fixture
def problem():
    """Texts `K N W` of 4 new and 7 seen classes, and vectors `S F` of the seen ones."""
    rng = np.random.default_rng(0)
    x, seen = unit(rng.normal(size=(4, 3, 6))), unit(rng.normal(size=(7, 3, 6)))
    return tuple(jnp.asarray(a, jnp.float32) for a in (x, seen, unit(rng.normal(size=(7, 5)))))


def test_prediction_is_the_solution_of_the_normal_equations(problem):
    x, seen, v = map(np.asarray, problem)
    z_new, z = unit(x - seen.mean(0)), unit(seen - seen.mean(0))

    def kernel(a, b):
        cosines = [a[n] @ b[n] for n in range(3)]
        return np.exp(-sum(w * (1 - c) for w, c in zip(WEIGHTS, cosines, strict=True)) / 0.7)

    gram = np.array([[kernel(a, b) for b in z] for a in z])
    alpha = np.linalg.solve(gram + 0.3 * np.eye(7), v)
    want = unit(np.array([[kernel(a, b) for b in z] for a in z_new]) @ alpha)
    got = jax.jit(ridge.predict)(*problem, jnp.asarray(WEIGHTS), 0.7, 0.3)
    np.testing.assert_allclose(got, want, atol=2e-6)


def test_linear_prediction_is_ridge_regression_from_the_concatenated_blocks(problem):
    x, seen, v = map(np.asarray, problem)
    z_new, z = (unit(a - seen.mean(0)).reshape(len(a), -1) for a in (x, seen))
    weight = np.linalg.solve(z.T @ z + ridge.LINEAR_STRENGTH[3] * np.eye(18), z.T @ v)
    np.testing.assert_allclose(ridge.predict_linear(*problem), unit(z_new @ weight), atol=2e-6)


def test_gradient_through_the_solution_equals_finite_differences(problem):
    x, seen, v = problem
    direction_KF = np.random.default_rng(1).normal(size=(4, 5))

    @jax.jit
    def score(logs):  # of three weights, the width and the strength
        constants = jnp.exp(logs)
        v_KF = ridge.predict(x, seen, v, constants[:3], constants[3], constants[4])
        return (v_KF * direction_KF).sum()

    logs = np.log(np.array([*WEIGHTS, 2.0, 1.0], np.float32))
    got, steps = jax.jit(jax.grad(score))(logs), np.float32(1e-2 * np.eye(5))
    want = [(score(logs + step) - score(logs - step)) / 2e-2 for step in steps]
    np.testing.assert_allclose(got, want, atol=5e-4)
    assert np.abs(want).min() > 1e-2


@pytest.mark.parametrize("neighbours", [1, 3, 50])
def test_hubness_is_the_mean_of_the_largest_cosines(problem, neighbours):
    v = problem[2]
    want = np.sort(np.asarray(v @ v.T), axis=1)[:, -neighbours:].mean(1)
    np.testing.assert_allclose(ridge.hubness(v, v, neighbours), want, atol=1e-6)
