# Image of web, background, beat and migration, selected by the command. Build it from the root of the repository:
#   docker build -f deploy/coordinator.Dockerfile -t fedloom-coordinator:0.1.0 .
ARG PYTHON_DIGEST=
FROM python:3.11.13-slim-bookworm${PYTHON_DIGEST} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/build && python -m venv /opt/fedloom
WORKDIR /source
COPY constraints.txt deploy/requirements-build.txt deploy/requirements-coordinator.txt ./
RUN /opt/build/bin/pip install --require-hashes --no-deps -r requirements-build.txt \
 && /opt/fedloom/bin/pip install --require-hashes --no-deps -r requirements-coordinator.txt
# The index of torch's CPU builds, a tenth of the size of those with CUDA: aggregation runs on CPUs.
ARG TORCH_INDEX=
# Pinned by version, as each platform and each index has other builds of it (requirements-coordinator.txt).
RUN /opt/fedloom/bin/pip install ${TORCH_INDEX:+--index-url "${TORCH_INDEX}"} -c constraints.txt torch
COPY pyproject.toml README.md LICENSE ./
COPY federated ./federated
COPY coordinator ./coordinator
COPY worker_agent ./worker_agent
COPY alembic ./alembic
RUN /opt/build/bin/pip wheel --no-build-isolation --no-deps --no-index --wheel-dir /wheels . \
 && /opt/fedloom/bin/pip install --no-deps --no-index /wheels/*.whl \
 && /opt/fedloom/bin/pip uninstall --yes pip

FROM python:3.11.13-slim-bookworm${PYTHON_DIGEST}
RUN groupadd --system --gid 10001 fedloom \
 && useradd --system --uid 10001 --gid 10001 --home-dir /var/lib/fedloom --shell /usr/sbin/nologin fedloom \
 && install --directory --owner=10001 --group=10001 --mode=0700 /var/lib/fedloom
COPY --from=build /opt/fedloom /opt/fedloom
ENV PATH=/opt/fedloom/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    FEDLOOM_DATA_FOLDER=/var/lib/fedloom \
    FEDLOOM_HOST=0.0.0.0 \
    FEDLOOM_LOG_FORMAT=json
USER 10001:10001
WORKDIR /var/lib/fedloom
VOLUME /var/lib/fedloom
EXPOSE 8000
ENTRYPOINT ["coordinator"]
CMD ["up"]
