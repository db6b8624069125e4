#!/bin/bash
# ejabberd as its starter would run it, but in the foreground, without Erlang's distribution (no node name, no port
# mapper), with the secret put into its configuration and its user made.
set -eu
run=/tmp
rm -f $run/ready
sed "s/@SECRET@/$(cat /run/secrets/capulet_secret)/" /etc/ejabberd/test.yml >$run/ejabberd.yml
ERL_LIBS=$(sed -n "s/^ERL_LIBS=['\"]\?\([^'\"]*\)['\"]\?$/\1/p" /usr/sbin/ejabberdctl)
export ERL_LIBS HOME=/var/lib/ejabberd ERL_CRASH_DUMP=/dev/null
export EJABBERD_CONFIG_PATH=$run/ejabberd.yml EJABBERD_LOG_PATH=$run/ejabberd.log
password=$(cat /run/secrets/bob_password)
# Erlang's own resolver, which finds the other server, asks dnsmasq; the system's resolver stays the engine's.
dnsmasq
printf '{resolv_conf, ""}.\n{nameserver, {127,0,0,1}}.\n' >$run/inetrc
export ERL_INETRC=$run/inetrc
exec erl -noinput -mnesia dir '"/var/lib/ejabberd"' -eval "
case application:ensure_all_started(ejabberd) of
    {ok, _} -> ejabberd_auth:try_register(<<\"bob\">>, <<\"capulet.test\">>, <<\"$password\">>),
               ok = file:write_file(\"$run/ready\", <<>>);
    E -> io:format(\"~p~n\", [E]), halt(1)
end."
