-- Fingerpost as a component of Prosody 0.12 or later.
-- Put this into /etc/prosody/conf.avail/fingerpost.cfg.lua, link it into conf.d, and `prosodyctl reload`.

-- Prosody listens for components on 127.0.0.1:5347 by default. If Fingerpost runs elsewhere, set in the global section:
--   component_interfaces = { "192.0.2.1" }

Component "xtls.example.org"
	-- The same as `secret` in fingerpost.toml; make one with: openssl rand -hex 32
	component_secret = "change me"

-- Clients find the component by itself if it is a subdomain of their host. Otherwise add to the VirtualHost:
--   disco_items = { { "xtls.example.org", "Fingerpost" } }

-- If mod_proxy65 runs too, clients choose between the two proxies; remove it to keep Fingerpost only.
