# Train in a container.
#   for a GPU:   docker build --tag ultralytics_kd .
#   for a CPU:   docker build --tag ultralytics_kd:cpu --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu .
#   run:         docker run --rm --gpus all --ipc host -v "$PWD":/work ultralytics_kd train data=... model=... teacher=...
# torch from PyPI brings the CUDA libraries; the host needs the NVIDIA driver and its container toolkit.

FROM python:3.12 AS build
WORKDIR /source
COPY . .
RUN pip install --no-cache-dir "build>=1.2" && python -m build --wheel --outdir /dist

FROM python:3.12-slim
ARG TORCH_INDEX=https://pypi.org/simple
# What OpenCV and torch.compile load; their versions are those of the image
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*
RUN pip install --no-cache-dir --index-url "${TORCH_INDEX}" "torch>=2.6" "torchvision>=0.21"
COPY --from=build /dist /dist
RUN pip install --no-cache-dir /dist/*.whl && useradd --create-home --uid 1000 user && mkdir /work && chown user /work
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000
WORKDIR /work
ENTRYPOINT ["yolo-kd"]
CMD ["help"]
