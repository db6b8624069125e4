#!/usr/bin/env bash
# gloox 1.0.24 and jxmpp 1.0.1 (the addresses of Smack), Debian 12: every backslash is escaped.
#
# Expected (XEP-0106, section 4.2 and the table in 5.1): a backslash is escaped only where it begins what looks like one of the ten
#   escape sequences. The local name c:\net becomes c\3a\net.
# Seen: both write c\3a\5cnet. That is another address, so a gateway that follows the XEP does not find the account, and an
#   access rule for the one does not match the other.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
apt-get download --quiet libgloox-dev=1.0.24-3+b1 libgloox18=1.0.24-3+b1 libidn12=1.41-1 libjxmpp-java=1.0.1-3 2>&1 | grep -v ^W: || true
for package in *.deb; do dpkg -x "$package" root; done
lib=$dir/root/usr/lib/$(dpkg-architecture -q DEB_HOST_MULTIARCH 2>/dev/null || echo x86_64-linux-gnu)
export LD_LIBRARY_PATH=$lib

cat >probe.cpp <<'CPP'
#include <cstdio>
#include <gloox/jid.h>

int main() {
    for (const char *name : {R"(c:\net)", R"(c:\5commas)"})
        printf("%s %s\n", name, gloox::JID::escapeNode(name).c_str());
}
CPP
g++ -I root/usr/include probe.cpp -o probe "$lib/libgloox.so.18"
cat >Probe.java <<'JAVA'
import org.jxmpp.util.XmppStringUtils;

class Probe {
    public static void main(String[] arguments) {
        for (String name : new String[] {"c:\\net", "c:\\5commas"})
            System.out.println(name + " " + XmppStringUtils.escapeLocalpart(name));
    }
}
JAVA
class_path=$(printf '%s:' root/usr/share/java/jxmpp-*-1.0.1.jar)
javac -cp "$class_path" Probe.java
echo "gloox:"
./probe | tee gloox
echo "jxmpp:"
java -cp "$class_path:." Probe | tee jxmpp
cmp gloox jxmpp
grep -qxF 'c:\net c\3a\5cnet' gloox
grep -qxF 'c:\5commas c\3a\5c5commas' gloox # as the XEP has it
