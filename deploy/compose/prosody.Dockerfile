ARG BASE=debian:bookworm-slim
FROM ${BASE}
# Prosody asks the resolver in /etc/resolv.conf, which is the engine's; without that file, 127.0.0.1.
RUN apt-get update && apt-get install -y --no-install-recommends dnsmasq-base prosody && rm -rf /var/lib/apt/lists/* && \
    sed -i 's,"/etc/resolv.conf","/dev/null",' /usr/lib/prosody/net/dns.lua
COPY deploy/compose/dnsmasq.conf /etc/dnsmasq.conf
COPY deploy/compose/prosody.cfg.lua /etc/prosody/prosody.cfg.lua
COPY deploy/compose/prosody.sh /usr/local/bin/start
USER prosody
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s --retries=5 \
    CMD ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/5222 4<>/dev/tcp/127.0.0.1/5347"]
CMD ["start"]
