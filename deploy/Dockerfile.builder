# syntax=docker/dockerfile:1
# check=skip=InvalidDefaultArgInFrom
# NVIDIA's TensorRT, and `tritonclip engine build`. Build with the repository as context.
ARG RELEASE
FROM nvcr.io/nvidia/tensorrt:${RELEASE}-py3

# The compiler and the headers are for pycuda, which comes as source; TensorRT's Python package is the image's own.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends g++ python3-dev python3-venv \
 && rm -rf /var/lib/apt/lists/* \
 && python3 -m venv --system-site-packages /opt/tritonclip
ENV PATH=/opt/tritonclip/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1

# PyTorch's index of CPU builds saves several GB: nothing here uses PyTorch's own CUDA.
ARG PIP_EXTRA_INDEX_URL
WORKDIR /opt/tritonclip/source
COPY pyproject.toml constraints.txt deploy/requirements.py ./
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 requirements.py export > requirements.txt \
 && pip install -r requirements.txt -c constraints.txt pycuda==2026.1
COPY . .
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --no-deps .

USER 1000:1000
WORKDIR /tmp
ENV HOME=/tmp
CMD ["tritonclip", "engine", "build", "/models/repository", "--runtime", "tensorrt"]
