ARG BASE=debian:bookworm-slim
FROM ${BASE}
RUN apt-get update && apt-get install -y --no-install-recommends dnsmasq-base ejabberd && rm -rf /var/lib/apt/lists/* && \
    rm -rf /var/lib/ejabberd/* /var/lib/ejabberd/.erlang.cookie
COPY deploy/compose/dnsmasq.conf /etc/dnsmasq.conf
COPY deploy/compose/ejabberd.yml /etc/ejabberd/test.yml
COPY deploy/compose/ejabberd.sh /usr/local/bin/start
USER ejabberd
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s --retries=5 \
    CMD ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/5222 4<>/dev/tcp/127.0.0.1/5347 && [ -e /tmp/ready ]"]
CMD ["start"]
