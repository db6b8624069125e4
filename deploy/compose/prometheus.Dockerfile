ARG BASE=debian:bookworm-slim
FROM ${BASE}
RUN apt-get update && apt-get install -y --no-install-recommends prometheus && rm -rf /var/lib/apt/lists/* && \
    install -d -o prometheus -g prometheus /var/lib/prometheus
COPY deploy/compose/prometheus.yml deploy/prometheus/*.yml /etc/prometheus/
USER prometheus
VOLUME /var/lib/prometheus
EXPOSE 9090
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s --retries=5 \
    CMD ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/9090"]
CMD ["prometheus", "--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/var/lib/prometheus", "--storage.tsdb.retention.time=1d"]
