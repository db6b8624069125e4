#!/bin/sh
# Prosody's configuration cannot read files; it can read the environment.
set -eu
COMPONENT_SECRET=$(cat /run/secrets/montague_secret)
export COMPONENT_SECRET
prosodyctl --config /etc/prosody/prosody.cfg.lua register alice montague.test "$(cat /run/secrets/alice_password)"
dnsmasq
exec prosody -F
