# CPU image by default. For a GPU give a CUDA base with Python 3.11 or newer, and PyPI's own torch:
#   docker build --build-arg BASE_IMAGE=... --build-arg BASE_DIGEST=@sha256:... --build-arg TORCH_INDEX_URL= .
ARG BASE_IMAGE=python:3.11-slim
ARG BASE_DIGEST=

FROM ${BASE_IMAGE}${BASE_DIGEST} AS build
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
# A folder of wheels that pip also reads, mounted for the build.
ARG PIP_FIND_LINKS=
# The native scan needs a C++ compiler at build time only.
RUN command -v c++ || { apt-get update && apt-get install --yes --no-install-recommends g++; }
WORKDIR /source
COPY pyproject.toml setup.py constraints.txt README.md LICENSE ./
COPY uumamba uumamba
COPY data_prep data_prep
COPY configs configs
RUN python3 -m venv /opt/uumamba
RUN /opt/uumamba/bin/python -m pip wheel --no-cache-dir --no-deps --wheel-dir dist .
RUN /opt/uumamba/bin/python -m pip install --no-cache-dir --constraint constraints.txt \
    ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} dist/*.whl

FROM ${BASE_IMAGE}${BASE_DIGEST}
COPY --from=build /opt/uumamba /opt/uumamba
ENV PATH=/opt/uumamba/bin:$PATH
RUN useradd --create-home --uid 1000 uumamba
USER 1000:1000
WORKDIR /home/uumamba
ENTRYPOINT ["uumamba"]
CMD ["--help"]
