#!/usr/bin/env bash
# Creates the secrets of the test environment, in target/compose: an authority, both servers' certificates, passwords.
# The directory is its owner's alone; the files in it are readable, because each container reads them as another user.
set -euo pipefail
directory=$(dirname "$0")/../../target/compose
[ -e "$directory/made" ] && exit
rm -rf "$directory"
(umask 077 && mkdir -p "$directory")
cd "$directory"

for name in montague_secret capulet_secret database_password alice_password bob_password; do
    openssl rand -hex 24 >$name
done
echo "postgres://fingerpost:$(cat database_password)@postgres/fingerpost" >database_url

openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj "/CN=Test authority" \
    -addext keyUsage=critical,keyCertSign -keyout ca.key -out ca.pem 2>/dev/null
certificate() {
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$2" -keyout "$1.key" -out "$1.csr" 2>/dev/null
    openssl x509 -req -in "$1.csr" -CA ca.pem -CAkey ca.key -CAcreateserial -days 30 -out "$1.pem" -extfile <(
        printf 'subjectAltName=DNS:%s,DNS:xtls.%s\nbasicConstraints=critical,CA:FALSE\nextendedKeyUsage=serverAuth,clientAuth\n' \
            "$2" "$2") 2>/dev/null
}
certificate prosody montague.test
certificate ejabberd capulet.test
cat ejabberd.key >>ejabberd.pem
rm -f ca.key ca.srl ./*.csr
chmod 644 ./*
touch made
