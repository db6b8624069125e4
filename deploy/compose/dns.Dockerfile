ARG BASE=debian:bookworm-slim
FROM ${BASE}
RUN apt-get update && apt-get install -y --no-install-recommends dnsmasq-base && rm -rf /var/lib/apt/lists/*
COPY deploy/compose/dnsmasq.conf /etc/dnsmasq.conf
USER nobody
# Names of containers are asked of the engine; where a domain's XMPP server is, it is told here.
CMD ["dnsmasq", "--keep-in-foreground", "--log-facility=-", "--pid-file=", "--conf-file=/etc/dnsmasq.conf"]
