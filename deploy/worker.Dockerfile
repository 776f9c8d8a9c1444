# Image of a worker agent. Build it from the root of the repository:
#   docker build -f deploy/worker.Dockerfile -t fedloom-worker:0.1.0 .
# Without a GPU, --build-arg TORCH_INDEX= with the index of torch's CPU builds makes it ten times smaller.
ARG PYTHON_DIGEST=
FROM python:3.11.13-slim-bookworm${PYTHON_DIGEST} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/build && python -m venv /opt/fedloom
WORKDIR /source
COPY constraints.txt deploy/requirements-build.txt deploy/requirements-worker.txt ./
RUN /opt/build/bin/pip install --require-hashes --no-deps -r requirements-build.txt \
 && /opt/fedloom/bin/pip install --require-hashes --no-deps -r requirements-worker.txt
ARG TORCH_INDEX=
# Pinned by version, as each platform and each index has other builds of it (requirements-worker.txt).
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
 && useradd --system --uid 10001 --gid 10001 --home-dir /var/lib/fedloom-worker --shell /usr/sbin/nologin fedloom \
 && install --directory --owner=10001 --group=10001 --mode=0700 /var/lib/fedloom-worker
COPY --from=build /opt/fedloom /opt/fedloom
ENV PATH=/opt/fedloom/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/var/lib/fedloom-worker/hub \
    FEDLOOM_WORKER_CONFIG=/etc/fedloom-worker/worker-agent.toml \
    FEDLOOM_WORKER_FOLDER=/var/lib/fedloom-worker \
    FEDLOOM_WORKER_LOG_FORMAT=json
USER 10001:10001
WORKDIR /var/lib/fedloom-worker
VOLUME /var/lib/fedloom-worker
ENTRYPOINT ["worker-agent"]
CMD ["run"]
