"""Training steps and inference of a CLIP ViT on a CPU, float32, against torch with the same weights.

python -m benchmarks.step
python -m benchmarks.step --preset=clip_b16

1. A training step on a batch of clips: forward, backward and AdamW; the loss is L_label over 400 classes
   whose text features are constant. torch runs the tower of `transformers` with its fused attention.
2. Inference: the embeddings of a batch of clips and their scores.
3. Our training step with the whole objective of CoCo: 400, 1,211 and 10,000 seen classes, each with 8
   descriptions, and 160 unseen ones.
4. Our training step with 1, 2 and 4 microbatches, and with rematerialisation, the other way to save
   memory.
5. With --part=compile: the time to trace and compile our initialisation, training step and embedding of
   videos.

Calls that are compared alternate. A product of two matrices of 2,048 x 2,048 values is timed between
them.
"""

import functools
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from absl import app, flags
from ml_collections import ConfigDict
from torch.nn import functional

from benchmarks import timing
from coco_jax import config as configs
from coco_jax import presets, sharding, weights
from coco_jax.models.coco import Batch
from coco_jax.training.step import State, make_program, model_flops
from tests.helpers import references

PRESET = flags.DEFINE_string("preset", "clip_b32", "clip_b32, clip_b16 or clip_l14.")
CLIPS = flags.DEFINE_integer("clips", 4, "Clips in a batch.", lower_bound=1)
FRAMES = flags.DEFINE_integer("frames", 8, "Frames of a clip.", lower_bound=1)
REPEATS = flags.DEFINE_integer("repeats", 5, "Timed calls of each.", lower_bound=1)
PARTS = flags.DEFINE_multi_enum(
    "part",
    ["torch", "classes", "microbatches"],
    ["torch", "classes", "microbatches", "compile"],
    "What to run.",
)
SEEN, UNSEEN = 400, 160
assert references  # importing it makes torchvision importable


def make_config(folder: str) -> ConfigDict:
    """A config with the preset's towers; the text tower is frozen, so texts are constant features."""
    config = configs.default()
    presets.apply(config, PRESET.value)
    config.ablation = "label"
    config.model.dtype = "float32"
    config.data.batch = CLIPS.value
    config.text.update(descriptions=8, templates=("{}",))
    config.text_tower.update(trainable="none", weights=folder)
    config.video_tower.update(
        frames=FRAMES.value, temporal="blocks", temporal_depth=0, weights=folder
    )
    return config


def save_reference(folder: str, config: ConfigDict) -> Any:
    """A random CLIP of `transformers`, saved in its own format."""
    from transformers import CLIPConfig, CLIPModel  # needs `references`

    torch.manual_seed(0)
    video, text = config.video_tower, config.text_tower
    model = CLIPModel(
        CLIPConfig(
            projection_dim=config.model.dim,
            vision_config={
                "hidden_size": video.width,
                "num_attention_heads": video.heads,
                "num_hidden_layers": video.depth,
                "patch_size": video.patch,
                "image_size": video.size,
                "intermediate_size": int(video.width * video.mlp_ratio),
            },
            text_config={
                "hidden_size": text.width,
                "num_attention_heads": text.heads,
                "num_hidden_layers": text.depth,
                "vocab_size": config.text.vocabulary,
                "max_position_embeddings": config.text.length,
                "intermediate_size": int(text.width * text.mlp_ratio),
            },
        )
    )
    model.save_pretrained(folder)
    return model


def make_batch(config: ConfigDict, seen: int = SEEN) -> Batch:
    """Random clips and text features."""
    rng, video = np.random.default_rng(0), config.video_tower

    def features(classes: int, each: int) -> jax.Array:
        x_KPW = rng.normal(size=(classes, each, config.text_tower.width))
        return jnp.asarray(x_KPW, jnp.bfloat16)

    shape = (config.data.batch, video.frames, video.size, video.size, 3)
    return Batch(
        video=jnp.asarray(rng.integers(0, 256, shape, dtype=np.uint8)),
        label=jnp.asarray(rng.integers(0, seen, config.data.batch, dtype=np.int32)),
        label_ids=features(seen, 1),
        description_ids=features(seen, config.text.descriptions),
        pool_label_ids=features(UNSEEN, 1),
        pool_description_ids=features(UNSEEN, config.text.descriptions),
        episode=jnp.asarray(rng.permutation(seen).astype(np.int32)),
    )


class Ours:
    """The program of a config, its state, and a batch."""

    def __init__(self, config: ConfigDict, batch: Batch):
        """Compiles the step and fills in the published weights."""
        self.batch, self.key = batch, jax.random.key(0)
        mesh = sharding.make_mesh(config, jax.devices()[:1])
        self.program = make_program(config, mesh)
        state = self.program.init(self.key)
        self.state: State = state._replace(params=weights.load(config, state.params))
        step: Any = self.program.step
        self.compiled_step = step.lower(self.state, batch, self.key).compile()
        memory = self.compiled_step.memory_analysis()
        self.temporary = memory.temp_size_in_bytes / 2**20  # MiB

    def step(self) -> float:
        """One training step; returns the loss before it."""
        self.state, terms = self.compiled_step(self.state, self.batch, self.key)
        return float(terms["loss"])

    def scores(self) -> np.ndarray:
        """The cosines of the clips with the classes' labels."""
        program, params = self.program, self.state.params
        v_BD = program.embed_videos(params, self.batch["video"])
        return np.asarray(program.scores(params, v_BD, self.labels, None))

    @functools.cached_property
    def labels(self) -> jax.Array:
        """Label embeddings, which inference computes once."""
        return self.program.embed_labels(self.state.params, self.batch["label_ids"])


class Theirs:
    """The same in torch: CLIP's image tower for each frame, their mean, L_label, AdamW."""

    def __init__(self, model: Any, config: ConfigDict, batch: Batch):
        """Takes the model's image tower and both projections."""
        self.model = model.train()
        self.video = torch.tensor(np.asarray(batch["video"]))
        self.label = torch.tensor(np.asarray(batch["label"])).long()
        self.text = torch.tensor(np.asarray(batch["label_ids"].astype(jnp.float32)))
        self.mean, self.std = (
            torch.tensor(x).view(3, 1, 1) for x in (config.video_tower.mean, config.video_tower.std)
        )
        self.log_tau = torch.nn.Parameter(torch.tensor(float(np.log(config.model.tau))))
        trained = [
            *model.vision_model.parameters(),
            *model.visual_projection.parameters(),
            *model.text_projection.parameters(),
            self.log_tau,
        ]
        self.trained, self.clip_norm = trained, config.optimizer.clip_norm
        self.optimizer = torch.optim.AdamW(trained, lr=1e-6)

    def embed(self) -> torch.Tensor:
        """Unit vectors of the clips."""
        frames = self.video.flatten(0, 1).permute(0, 3, 1, 2).float().contiguous()
        pixels = (frames / 255 - self.mean) / self.std
        x = self.model.vision_model(pixel_values=pixels).pooler_output
        x = self.model.visual_projection(x.view(*self.video.shape[:2], -1).mean(1))
        return functional.normalize(x, dim=-1)

    def embed_labels(self) -> torch.Tensor:
        """Unit vectors of the classes."""
        each = functional.normalize(self.model.text_projection(self.text), dim=-1)
        return functional.normalize(each.mean(1), dim=-1)

    def step(self) -> float:
        """One training step; returns the loss before it."""
        self.optimizer.zero_grad(set_to_none=True)
        logits = self.embed() @ self.embed_labels().T / self.log_tau.exp()
        by_video = functional.cross_entropy(logits, self.label)
        positive = functional.one_hot(self.label, logits.shape[1]).float()
        count = positive.sum(0)
        by_class = -(positive * logits.log_softmax(0)).sum(0) / count.clamp(min=1)
        loss = by_video + by_class.sum() / (count > 0).sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, self.clip_norm)
        self.optimizer.step()
        return float(loss.detach())

    @functools.cached_property
    def labels(self) -> torch.Tensor:
        """Label embeddings, which inference computes once."""
        with torch.inference_mode():
            return self.embed_labels()

    def scores(self) -> np.ndarray:
        """The cosines of the clips with the classes' labels."""
        with torch.inference_mode():
            return (self.embed() @ self.labels.T).numpy()


def against_torch(config: ConfigDict, reference: Any) -> None:
    """Parts 1 and 2."""
    batch = make_batch(config)
    ours, theirs = Ours(config, batch), Theirs(reference, config, batch)
    difference = np.abs(ours.scores() - theirs.scores()).max()
    loss = ours.step() - theirs.step()
    product = {timing.PRODUCT: timing.matrix_product()}
    found = {
        name: timing.measure(calls | product, REPEATS.value)
        for name, calls in (
            ("inference", {"coco_jax": ours.scores, "torch": theirs.scores}),
            ("training step", {"coco_jax": ours.step, "torch": theirs.step}),
        )
    }
    counted = config.copy_and_resolve_references()
    counted.model.dtype = "bfloat16"  # as in `model_flops`
    embed: Any = make_program(counted, sharding.make_mesh(counted, jax.devices()[:1])).embed_videos
    flops = {
        "inference": embed.lower(ours.state.params, batch["video"]).cost_analysis()["flops"],
        "training step": model_flops(config, batch),
    }
    for name, times in found.items():
        timing.show(name, times)
        own, other = times["coco_jax"], times["torch"]
        share = flops[name] / 1e9 / own.best / timing.rate(times[timing.PRODUCT])
        print(
            f"{name}: torch's time / ours {other.best / own.best:.2f} (best), "
            f"{other.median / own.median:.2f} (median), {other.cpu / own.cpu:.2f} (CPU time); "
            f"{CLIPS.value / own.best:.2f} clips/s; {share:.2f} of the rate of the matrix product"
        )
    print(
        f"at the start, scores differ by at most {difference:.1e}, the losses by {abs(loss):.1e}; "
        f"our step needs {ours.temporary:,.0f} MiB of temporary memory"
    )


def compare(title: str, steps: Mapping[str, Ours]) -> None:
    """Times the training steps of several configs, and compares them with the first."""
    times = timing.measure({name: ours.step for name, ours in steps.items()}, REPEATS.value)
    timing.show(title, times)
    first, *_ = times.values()
    for name, x in times.items():
        print(
            f"{name}: {x.best / first.best:.2f} (best), {x.median / first.median:.2f} (median) of the "
            f"first; {steps[name].temporary:,.0f} MiB of temporary memory"
        )


def full(config: ConfigDict, microbatches: int = 1, seen: int = SEEN, remat: bool = False) -> Ours:
    """A program with the whole objective."""
    config = config.copy_and_resolve_references()
    config.ablation, config.optimizer.microbatches = "full", microbatches
    config.model.remat = remat
    return Ours(config, make_batch(config, seen))


def compile_times(config: ConfigDict) -> None:
    """Part 5: the best of `REPEATS` times; no compiled program is kept between them."""
    jax.config.update("jax_enable_compilation_cache", False)
    batch, key = make_batch(config), jax.random.key(0)
    mesh = sharding.make_mesh(config, jax.devices()[:1])
    found: dict[str, list[tuple[float, float]]] = {}
    for _ in range(REPEATS.value):
        jax.clear_caches()
        start = time.perf_counter()
        program: Any = make_program(config, mesh)
        found.setdefault("structure of the model", []).append((time.perf_counter() - start, 0.0))
        params = program.abstract.params
        for name, function, inputs in (
            ("initialisation", program.init, (key,)),
            ("training step", program.step, (program.abstract, batch, key)),
            ("embedding of videos", program.embed_videos, (params, batch["video"])),
        ):
            start = time.perf_counter()
            lowered = function.lower(*inputs)
            traced = time.perf_counter()
            lowered.compile()
            found.setdefault(name, []).append((traced - start, time.perf_counter() - traced))
    print("| | tracing | compiling |\n| --- | --- | --- |")
    for name, seconds in found.items():
        print(f"| {name} | " + " | ".join(f"{x:.1f} s" for x in np.min(seconds, 0)) + " |")


def main(argv: list[str]) -> None:
    """Prints the tables."""
    del argv
    if "compile" in PARTS.value:
        compile_times(make_config(""))
    if PARTS.value == ["compile"]:
        return
    with tempfile.TemporaryDirectory() as folder:
        config = make_config(folder)
        reference = save_reference(folder, config)
        print(
            f"{PRESET.value}, {CLIPS.value} clips of {FRAMES.value} frames, float32; torch "
            f"{torch.__version__}, jax {jax.__version__}, {torch.get_num_threads()} threads"
        )
        if "torch" in PARTS.value:
            against_torch(config, reference)
        if "classes" in PARTS.value:
            counts = (SEEN, 1211, 10_000)
            compare("full", {f"{n:,} seen classes": full(config, seen=n) for n in counts})
        if "microbatches" in PARTS.value:
            steps = {f"{n} microbatches": full(config, n) for n in (1, 2, 4)}
            compare("full", steps | {"rematerialisation": full(config, remat=True)})


if __name__ == "__main__":
    app.run(main)
