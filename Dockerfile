# One image for every process of the service; EP chooses the onnxruntime wheel, and with it the base. EXTRAS=s3,sign,train adds PyTorch:
# with EP=cpu give --build-arg PIP_EXTRA_INDEX_URL too, the address of PyTorch's index of wheels without CUDA's libraries.
ARG EP=cpu

FROM python:3.12-slim-bookworm AS base-cpu

# What the wheel of onnxruntime-gpu is built against: CUDA 13 with cuDNN 9.
FROM nvidia/cuda:13.0.1-cudnn-runtime-ubuntu24.04 AS base-gpu
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && ln -s /usr/bin/python3 /usr/local/bin/python

FROM base-${EP} AS base
ENV PYTHONUNBUFFERED=1 \
    ORT_DISABLE_TELEMETRY=1 \
    PATH=/opt/onnxpress/bin:$PATH

FROM base AS build
ARG EP
ARG EXTRAS=s3,sign
ARG PIP_EXTRA_INDEX_URL
WORKDIR /src
RUN python -m venv /opt/onnxpress
# What it is made of, each file by its digest; what is not locked (other builds of ONNX Runtime, PyTorch) comes by the ranges below.
COPY requirements requirements
RUN pip install --no-cache-dir --compile --require-hashes \
    -r requirements/$([ "$EP" = cpu ] && echo cpu || echo service).txt
COPY pyproject.toml README.md LICENSE ./
COPY settings settings
COPY engine engine
COPY sandbox sandbox
COPY models models
COPY services services
COPY api api
COPY worker worker
COPY standalone standalone
COPY migrations migrations
# Compiled here: the root file system is read-only where it runs.
RUN pip install --no-cache-dir --compile --no-build-isolation ".[${EP},${EXTRAS}]" \
    && onnxpress-server sbom --out /opt/onnxpress/sbom.cdx.json

FROM base
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin onnxpress \
    && install -d -o onnxpress -g onnxpress -m 0700 /data
COPY --from=build /opt/onnxpress /opt/onnxpress
ENV PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    ONNXPRESS_DATA_DIR=/data \
    ONNXPRESS_HOST=0.0.0.0
USER onnxpress
VOLUME /data
EXPOSE 8765
ENTRYPOINT ["onnxpress-server"]
CMD ["api"]
