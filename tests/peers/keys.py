"""The registry's requests from a user's side: keys made by OpenSSL and GnuPG, proofs, settings, export, erasure.

Reports the answers, condition by condition; the Rust side has the expected ones.
"""

import asyncio
import base64
import re
import subprocess
from pathlib import Path

from peer import KEYS, TIMEOUT, Peer, main, proxied
from slixmpp.exceptions import IqError
from slixmpp.xmlstream import ET

NS = {"k": KEYS}


def run(*command):
    subprocess.run(command, check=True, capture_output=True)


def x509(directory, name, *algorithm):
    """A certificate (DER) and its key file, by OpenSSL."""
    key, pem = directory / f"{name}.key", directory / f"{name}.pem"
    run("openssl", "req", "-x509", "-nodes", "-days", "2", "-subj", f"/CN={name}", "-newkey", *algorithm,
        "-keyout", str(key), "-out", str(pem))  # fmt: skip
    der = directory / f"{name}.der"
    run("openssl", "x509", "-in", str(pem), "-outform", "DER", "-out", str(der))
    return der.read_bytes(), key


def openssl_sign(directory, key, kind, message):
    data, out = directory / "message", directory / "signature"
    data.write_bytes(message)
    if kind == "ed25519":
        run("openssl", "pkeyutl", "-sign", "-rawin", "-inkey", str(key), "-in", str(data), "-out", str(out))
    else:
        pss = ["-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:-1"] if kind == "rsa" else []
        run("openssl", "dgst", "-sha256", *pss, "-sign", str(key), "-out", str(out), str(data))
    return out.read_bytes()


def gpg(directory, *args):
    done = subprocess.run(
        ["gpg", "--homedir", str(directory / "gnupg"), "--batch", "--pinentry-mode", "loopback", "--passphrase", "", *args],
        check=True, capture_output=True)  # fmt: skip
    return done.stdout


def message(component, user, nonce):
    return b"\0".join([b"fingerpost:prove:0", component.encode(), user.encode(), base64.b64decode(nonce)])


async def ask(peer, to, payload, kind="get"):
    """The answer's payload, or the error's condition and text."""
    try:
        answer = await peer.request(to, payload, kind)
    except IqError as error:
        return f"{error.condition}: {error.text}"
    return next(iter(answer.xml), None)


def shown(element):
    """An answer without the parts that differ between runs."""
    text = element if isinstance(element, str) else ET.tostring(element, encoding="unicode")
    return re.sub(r"(jid|id)='[^']*'|(jid|id)=\"[^\"]*\"", "", text)


async def story(settings):
    directory, component = Path(settings["directory"]), settings["component"]
    (directory / "gnupg").mkdir(mode=0o700)
    alice = await Peer(settings, "alice", "keys").login()
    bob = await Peer(settings, "bob", "keys").login()
    user = alice.boundjid.bare
    told = []
    alice.add_event_handler("message", lambda m: told.append(str(m["body"])))
    report = {}

    def q(name, inside="", **attributes):
        listed = " ".join(f"{key}='{value}'" for key, value in attributes.items())
        return f"<{name} xmlns='{KEYS}' {listed}>{inside}</{name}>"

    async def add(method, material, **attributes):
        listed = " ".join(f"{key}='{value}'" for key, value in attributes.items())
        text = base64.b64encode(material).decode()
        return await ask(alice, component, q(
            "add", f"<key method='{method}' {listed}><material>{text}</material></key>"), "set")  # fmt: skip

    async def prove(key_id, signer, who=alice):
        challenge = await ask(who, component, q("challenge", id=key_id))
        nonce = challenge.get("nonce")
        signature = base64.b64encode(signer(message(component, user, nonce))).decode()
        answer = await ask(who, component, q("prove", f"<signature>{signature}</signature>", id=key_id), "set")
        return answer, signature

    # Every kind of key can be proven.
    ids = {}
    for kind, algorithm in (("ed25519", ["ed25519"]), ("rsa", ["rsa:2048"]),
                            ("p256", ["ec", "-pkeyopt", "ec_paramgen_curve:P-256"])):  # fmt: skip
        der, key = x509(directory, kind, *algorithm)
        added = await add("x509", der, label=kind)
        ids[kind] = added.get("id")
        hashes = sorted(p.get("hash") for p in added.findall("k:print", NS))
        answer, signature = await prove(ids[kind], lambda m, k=key, n=kind: openssl_sign(directory, k, n, m))
        report[kind] = [hashes, added.get("assurance"), answer if isinstance(answer, str) else answer.get("assurance")]
    gpg(directory, "--quick-gen-key", f"Alice <xmpp:{user}>", "ed25519", "sign", "1y")
    added = await add("openpgp", gpg(directory, "--export"), label="pgp")
    fingerprint = re.search(rb"fpr:+([0-9A-F]{40}):", gpg(directory, "--with-colons", "--list-keys"))[1].decode()
    ids["pgp"] = added.get("id")

    def gpg_sign(data):
        (directory / "message").write_bytes(data)
        return gpg(directory, "--detach-sign", "-o", "-", str(directory / "message"))

    answer, _ = await prove(ids["pgp"], gpg_sign)
    report["gpg"] = [
        added.find("k:print", NS).text.replace(":", "") == fingerprint,
        added.get("expires") is not None,
        answer if isinstance(answer, str) else answer.get("assurance"),
    ]
    report["secret key"] = await add("openpgp", gpg(directory, "--export-secret-keys"))
    certificate = next((directory / "gnupg/openpgp-revocs.d").iterdir()).read_text().replace(":-----BEGIN", "-----BEGIN")
    (directory / "revocation").write_text(certificate)
    gpg(directory, "--import", str(directory / "revocation"))
    revoked = await add("openpgp", gpg(directory, "--export"))
    report["revoked material"] = [revoked.get("id") == ids["pgp"], revoked.get("state")]

    # A proof is valid once, for one key, one user and one component.
    report["used"] = await ask(alice, component, q("prove", f"<signature>{signature}</signature>", id=ids["p256"]), "set")
    der, key = x509(directory, "fresh", "ed25519")
    fresh = (await add("x509", der, label="fresh")).get("id")
    report["other key"], _ = await prove(fresh, lambda m: openssl_sign(directory, directory / "ed25519.key", "ed25519", m))
    report["other component"], _ = await prove(fresh, lambda m: openssl_sign(
        directory, key, "ed25519", m.replace(component.encode(), b"other.example")))  # fmt: skip
    report["other user"], _ = await prove(fresh, lambda m: openssl_sign(
        directory, key, "ed25519", m.replace(user.encode(), b"bob@example.test")))  # fmt: skip
    report["stranger's challenge"] = await ask(bob, component, q("challenge", id=fresh))
    again = await add("x509", der, label="again")
    report["same key"] = again.get("id") == fresh

    # One key replaces another; a revoked one stays revoked.
    der, _ = x509(directory, "next", "ed25519")
    await add("x509", der, label="next", replaces=fresh)
    states = {k.get("id"): k.get("state") for k in await ask(alice, component, q("keys"))}
    report["replaced"] = states[fresh]
    revoked = await ask(alice, component, q("revoke", id=ids["rsa"], reason="lost"), "set")
    report["revoked"] = revoked.get("state")
    report["revoked challenge"] = await ask(alice, component, q("challenge", id=ids["rsa"]))
    report["stranger's revoke"] = await ask(bob, component, q("revoke", id=ids["p256"]), "set")
    report["material"] = base64.b64decode(
        (await ask(bob, component, q("key", id=ids["p256"], material="true"))).find("k:material", NS).text
    ) == (directory / "p256.der").read_bytes()
    report["told"] = len([text for text in told if "If that was not you" in text]) > 5

    # The visibility of keys.
    report["default"] = (await ask(alice, component, q("settings"))).get("visibility")
    report["seen"] = len(await ask(bob, component, q("keys", jid=user)))
    bare = proxied(user, component)
    alice.send_presence(pto=component)
    # The presence comes on another stream than the ping.
    end = asyncio.get_running_loop().time() + TIMEOUT
    while isinstance(await ask(bob, bare, "<ping xmlns='urn:xmpp:ping'/>"), str):
        if asyncio.get_running_loop().time() > end:
            break
        await asyncio.sleep(0.1)
    report["reached"] = isinstance(await ask(bob, bare, "<ping xmlns='urn:xmpp:ping'/>"), str)
    await ask(alice, component, q("settings", visibility="nobody"), "set")
    for name, request, to in (
        ("keys", lambda jid: q("keys", jid=jid), lambda jid: component),
        ("ping", lambda jid: "<ping xmlns='urn:xmpp:ping'/>", lambda jid: proxied(jid, component)),
    ):
        hidden = await ask(bob, to(user), request(user))
        unknown = await ask(bob, to("nobody@example.test"), request("nobody@example.test"))
        report[f"hidden {name}"] = shown(hidden) == shown(unknown)
    command = "<command xmlns='http://jabber.org/protocol/commands' node='urn:fingerpost:cmd:lookup' {}>{}</command>"
    form = "<x xmlns='jabber:x:data' type='submit'><field var='jid'><value>{}</value></field></x>"
    tables = []
    for jid in (user, "nobody@example.test"):
        first = await ask(bob, component, command.format("", ""), "set")
        session = first.get("sessionid")
        last = await ask(bob, component, command.format(f"sessionid='{session}'", form.format(jid)), "set")
        tables.append(shown(last).replace(session, "").replace(jid, ""))
    report["hidden command"] = tables[0] == tables[1]
    report["hidden key"] = await ask(bob, component, q("key", id=ids["p256"])) == await ask(
        bob, component, q("key", id="0" * 32))  # fmt: skip
    await ask(alice, component, q("settings", f"<allow jid='{bob.boundjid.bare}'/>", visibility="listed"), "set")
    report["listed"] = len(await ask(bob, component, q("keys", jid=user)))
    report["bad settings"] = await ask(alice, component, q("settings", visibility="some"), "set")

    # Everything held, and then nothing.
    export = await ask(alice, component, q("export"))
    report["export"] = [
        len(export.find("k:keys", NS)),
        export.find("k:settings", NS).get("visibility"),
        sorted({e.get("event") for e in export.find("k:audit", NS)}),
    ]
    report["unconfirmed"] = await ask(alice, component, q("erase", confirm="bob@example.test"), "set")
    await ask(alice, component, q("erase", confirm=user), "set")
    report["erased"] = [
        len(await ask(alice, component, q("keys"))),
        (await ask(alice, component, q("settings"))).get("visibility"),
        len((await ask(alice, component, q("export"))).find("k:audit", NS)),
    ]
    return report


main(story)
