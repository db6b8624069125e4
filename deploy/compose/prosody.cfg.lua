-- Prosody of the test environment: the host montague.test with the component xtls.montague.test.
pidfile = "/tmp/prosody.pid"
data_path = "/var/lib/prosody"
modules_enabled = { "disco", "pep", "ping", "roster", "saslauth", "tls" }
authentication = "internal_hashed"
c2s_require_encryption = true
-- Other servers must speak TLS and show a certificate of the test authority.
s2s_require_encryption = true
s2s_secure_auth = true
ssl = {
	key = "/run/secrets/prosody.key";
	certificate = "/run/secrets/prosody.pem";
	cafile = "/run/secrets/ca.pem";
}
component_interfaces = { "*" }
log = { info = "*console" }

VirtualHost "montague.test"

Component "xtls.montague.test"
	component_secret = ENV_COMPONENT_SECRET
