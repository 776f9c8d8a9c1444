# Image of an S3-compatible store for compose.yaml, whose data folder is writable without root.
ARG DEBIAN_DIGEST=
ARG MINIO_DIGEST=
FROM debian:12.11-slim${DEBIAN_DIGEST} AS folder
RUN install --directory --owner=10001 --group=10001 --mode=0750 /data

FROM minio/minio:RELEASE.2025-09-07T16-13-09Z${MINIO_DIGEST}
COPY --from=folder --chown=10001:10001 /data /data
USER 10001:10001
VOLUME /data
EXPOSE 9000
CMD ["server", "/data"]
