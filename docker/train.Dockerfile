# Runs the steps that score and train on GPUs. The torch packages include CUDA; the driver is the host's.
# Nothing is compiled at run time: optimizer and attention (sdpa) are torch's. docker/README.md
# has the arguments.
# Two optional build secrets configure pip and are in no layer: `pip`, a pip.conf, and `ca`, certificates
# (as /run/secrets/ca, for `cert =` in that pip.conf).
ARG BASE=python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d

FROM ${BASE} AS build
# hadolint ignore=DL3002
USER 0
WORKDIR /src
ARG PIP_EXTRA_INDEX_URL
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_CONSTRAINT=/src/effective-constraints.txt \
    PIP_BUILD_CONSTRAINT=/src/effective-constraints.txt
COPY constraints.txt pyproject.toml ./
COPY docker docker
RUN python3 docker/environment.py create

# cuda, or any, which allows every build that pip selects, including CPU builds.
ARG TORCH=cuda
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=secret,id=ca \
    python3 docker/environment.py torch ${TORCH} \
    && python3 docker/environment.py install train lora evaluate tracking

COPY LICENSE README.md ./
COPY pipeline pipeline
COPY components components
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=secret,id=ca \
    /opt/spin/bin/pip install --no-deps . \
    && python3 docker/environment.py check

FROM ${BASE}
ARG BASE
LABEL org.opencontainers.image.title="SPIN pipelines, training"
# Read by the NVIDIA container runtime.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

# Identical in all images from here on; checked by tests/unit/test_images.py.
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="${BASE}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.description="Self-play fine-tuning (SPIN) of language models as a Kubeflow pipeline"
# Some base images already have a user with this id.
RUN (getent group 1000 || groupadd --gid 1000 spin) \
    && (getent passwd 1000 || useradd --uid 1000 --gid 1000 --no-create-home --home-dir /tmp --shell /bin/sh spin) \
    && install --directory --owner 1000 --group 1000 /var/cache/spin
COPY --from=build /opt/spin /opt/spin
# Only /tmp and /var/cache/spin need to be writable: all caches of libraries are below them.
ENV PATH=/opt/spin/bin:${PATH} \
    HOME=/tmp \
    HF_HOME=/var/cache/spin/huggingface \
    SPIN_CACHE_DIR=/var/cache/spin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /tmp
USER 1000:1000
ENTRYPOINT []
CMD ["spin-pipeline", "--help"]
