#!/usr/bin/env bash
# Prosody 0.12.3 (Debian 12): a relay between two connections keeps bytes that it has read.
#
# Expected (XEP-0065, section 6): when the bytestream is activated, the proxy relays all data between the two clients.
# Seen: net.server_epoll's link(), which mod_proxy65 uses, takes 4,096 bytes of what LuaSocket has read, and pauses. When it resumes,
#   it waits for new bytes from the network, and not for those in LuaSocket's buffer. So the rest of 6,000 bytes stays there
#   until the sender sends more, or closes the connection. If both clients then wait for each other, as in a TLS handshake with long
#   certificates or a sender that waits for the receiver, they wait for ever.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
apt-get download --quiet prosody=0.12.3-1+deb12u1 lua5.4=5.4.4-3+deb12u1 lua-socket=3.1.0-1+b1 lua-sec=1.2.0-2 2>&1 | grep -v ^W: || true
for package in *.deb; do dpkg -x "$package" root; done
libraries=$dir/root/usr/lib/$(dpkg-architecture -q DEB_HOST_MULTIARCH 2>/dev/null || echo x86_64-linux-gnu)/lua/5.4
modules=$dir/root/usr/lib/prosody
share=$dir/root/usr/share/lua/5.4

cat >probe.lua <<'LUA'
local server, socket = require "net.server_epoll", require "socket";

local function connection()
	local listener = assert(socket.bind("127.0.0.1", 0));
	local host, port = listener:getsockname();
	local client = assert(socket.connect(host, port));
	return client, assert(listener:accept());
end

local sender, first = connection();
local second, receiver = connection();
local none = { onincoming = function () end, ondisconnect = function (conn) conn.other:close(); end };
local initiator = server.wrapclient(first, "127.0.0.1", 1, none, "*a");
local target = server.wrapclient(second, "127.0.0.1", 2, none, "*a");
initiator.other, target.other = target, initiator;
-- As mod_proxy65 does it.
server.link(initiator, target, 4096);
server.link(target, initiator, 4096);
initiator:resume();
target:resume();

receiver:settimeout(0);
local received = 0;
local function receive()
	local data, _, partial = receiver:receive(6000);
	received = received + #(data or partial);
	return received;
end

assert(sender:send(("x"):rep(6000)) == 6000);
server.add_task(2, function ()
	print(("%d of 6000 bytes after 2 s; more in the relay's buffer: %s"):format(receive(), first:dirty()));
	assert(received == 4096 and first:dirty());
	sender:close();
	server.add_task(1, function ()
		print(("%d after the sender has closed its connection"):format(receive()));
		assert(received == 6000);
		os.exit(0);
	end);
end);
server.loop();
LUA
LUA_PATH="$modules/?.lua;$share/?.lua" LUA_CPATH="$modules/?.so;$libraries/?.so" root/usr/bin/lua5.4 probe.lua
