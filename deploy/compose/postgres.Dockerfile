ARG BASE=debian:bookworm-slim
FROM ${BASE}
# Debian would make a cluster on installation; the container makes its own when it first starts.
RUN mkdir -p /etc/postgresql-common && echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf && \
    apt-get update && apt-get install -y --no-install-recommends postgresql && rm -rf /var/lib/apt/lists/* && \
    ln -s /usr/lib/postgresql/*/bin /usr/local/pgsql && \
    install -d -o postgres -g postgres -m 0700 /var/lib/postgresql/data
COPY deploy/compose/postgres.sh /usr/local/bin/start
USER postgres
VOLUME /var/lib/postgresql/data
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s --retries=5 \
    CMD ["/usr/local/pgsql/pg_isready", "--quiet", "--host", "127.0.0.1"]
CMD ["start"]
