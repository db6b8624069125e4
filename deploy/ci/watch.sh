#!/usr/bin/env bash
# Makes a directory with our programs, in which `fingerpost serve` runs under strace(1) and records each socket that it opens and each
# connection that it begins: watch.sh PROGRAMS DIRECTORY
# outgoing.py reads the records in DIRECTORY/records.
set -euo pipefail

programs=$(realpath "$1")
rm -rf "$2"
mkdir -p "$2/records"
directory=$(realpath "$2")
ln -s "$programs/xtls" "$directory/xtls"
cat >"$directory/fingerpost" <<END
#!/usr/bin/env bash
[ "\$1" = serve ] || exec "$programs/fingerpost" "\$@"
# The program keeps its process number: the tracer is a grandchild.
record=\$(mktemp -d "$directory/records/XXXXXXXX")
printf '%s\n' "\$@" >"\$record/arguments"
env | grep '^FINGERPOST_' >"\$record/environment" || true
# The test removes its configuration.
for file in "\$@"; do
    case \$file in *.toml) cp -- "\$file" "\$record/fingerpost.toml" 2>/dev/null || true ;; esac
done
exec strace -D -f --seccomp-bpf -qq -e trace=socket,connect -o "\$record/calls" -- "$programs/fingerpost" "\$@"
END
chmod +x "$directory/fingerpost"
