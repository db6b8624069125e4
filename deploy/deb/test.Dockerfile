# A new machine with systemd, and Prosody as its operator already runs it: example.org, with users.
ARG BASE=debian:bookworm-slim
FROM ${BASE}
# "Yes" to apt's question, which a person would type.
RUN echo 'APT::Get::Assume-Yes "true";' >/etc/apt/apt.conf.d/95yes && apt-get update && \
    apt-get install --no-install-recommends systemd systemd-sysv dbus sudo openssl ca-certificates adduser prosody lintian && \
    systemctl mask systemd-networkd-wait-online.service getty.target console-getty.service systemd-logind.service
COPY deploy/deb/test-prosody.cfg.lua /etc/prosody/conf.d/example.org.cfg.lua
RUN useradd --create-home alice && useradd --create-home bob && useradd --create-home --gid operator operator && \
    echo 'operator ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/operator && \
    cd /etc/prosody/certs && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 \
        -subj /CN=example.org -addext subjectAltName=DNS:example.org,DNS:xtls.example.org \
        -addext basicConstraints=critical,CA:FALSE -keyout example.org.key -out example.org.crt && \
    chown prosody:prosody example.org.* && \
    cp example.org.crt /usr/local/share/ca-certificates/example.org.crt && update-ca-certificates
STOPSIGNAL SIGRTMIN+3
CMD ["/sbin/init"]
