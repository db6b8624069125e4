#!/usr/bin/env bash
# gloox 1.0.24 and libstrophe 0.12.2 (Debian 12): an "@" in the resource of an address without a localpart.
#
# Expected (RFC 7622, sections 3.1 and 3.4): "proxy.example/relay@1" is the resource "relay@1" of the domain "proxy.example".
# Seen: gloox refuses the address, so a stanza from that component has no sender. libstrophe has three answers at once: its
#   localpart is "proxy.example/relay", its domain "1", and its bare address "proxy.example".
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
apt-get download --quiet libgloox-dev=1.0.24-3+b1 libgloox18=1.0.24-3+b1 libidn12=1.41-1 libstrophe-dev=0.12.2-1 libstrophe0=0.12.2-1 2>&1 | grep -v ^W: || true
for package in *.deb; do dpkg -x "$package" root; done
lib=$dir/root/usr/lib/$(dpkg-architecture -q DEB_HOST_MULTIARCH 2>/dev/null || echo x86_64-linux-gnu)
export LD_LIBRARY_PATH=$lib

cat >probe.cpp <<'CPP'
#include <cassert>
#include <cstdio>
#include <cstring>
#include <gloox/jid.h>
#include <strophe.h>

int main() {
    const char *address = "proxy.example/relay@1";
    gloox::JID jid;
    bool taken = jid.setJID(address);
    printf("gloox:      %s, domain \"%s\"\n", taken ? "taken" : "refused", jid.server().c_str());
    assert(!taken && jid.server().empty());
    assert(jid.setJID("a@proxy.example/relay@1") && jid.resource() == "relay@1");

    xmpp_ctx_t *context = xmpp_ctx_new(nullptr, nullptr);
    char *local = xmpp_jid_node(context, address), *domain = xmpp_jid_domain(context, address);
    char *bare = xmpp_jid_bare(context, address);
    printf("libstrophe: localpart \"%s\", domain \"%s\", bare \"%s\"\n", local, domain, bare);
    assert(!strcmp(local, "proxy.example/relay") && !strcmp(domain, "1") && !strcmp(bare, "proxy.example"));
}
CPP
g++ -I root/usr/include probe.cpp -o probe "$lib/libgloox.so.18" "$lib/libstrophe.so.0"
./probe
