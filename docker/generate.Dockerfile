# Runs generate on GPUs: based on the vLLM image with its torch, plus the packages that a step needs.
# The packages of the base are kept, including compilers: vLLM and Triton compile kernels at run time.
# docker/README.md has the arguments.
# Two optional build secrets configure pip and are in no layer: `pip`, a pip.conf, and `ca`, certificates
# (as /run/secrets/ca, for `cert =` in that pip.conf).
ARG BASE=vllm/vllm-openai:v0.33.0

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

RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=secret,id=ca \
    python3 docker/environment.py install train lora --without deepspeed

COPY LICENSE README.md ./
COPY pipeline pipeline
COPY components components
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=secret,id=ca \
    /opt/spin/bin/pip install --no-deps . \
    && python3 docker/environment.py check

FROM ${BASE}
ARG BASE
LABEL org.opencontainers.image.title="SPIN pipelines, generation"
# The base image may set another user.
USER 0

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
