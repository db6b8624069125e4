"""Two Gajims and `xtls`, each in a network of its own, on a real server with the real component: `make gajim-test`.

With FINGERPOST_TEST_DEBIAN=trixie the Gajims are those of Debian 13.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import subprocess
import unittest
from pathlib import Path

from networks import CHAT, DOMAIN, FILES, GAJIM_ROOT, KEYS, NOBODY, ROOT, Networks, digits_of

ALICE, BOB, CAROL, XTLS = (f"{name}@{DOMAIN}" for name in ("alice", "bob", "carol", "xtls"))
SIZE = 3_000_001
LARGE = 60_000_001
"""More bytes than all buffers between two users hold."""
SAME, DIFFERENT = "The Digits Are the Same", "They Differ"
SEND = "Send File End-to-End Encrypted…"


class Stories(unittest.IsolatedAsyncioTestCase):
    """They build on each other, in the order of their names: what was accepted in one is known in the next."""

    @classmethod
    def setUpClass(cls):
        cls.world = Networks()
        cls.addClassCleanup(cls.world.close)
        cls.numbers = iter(range(1000))
        cls.alice = cls.world.gajim("alice", "a", installed=True)
        cls.bob = cls.world.gajim("bob", "b", installed=False, others=("carol",))
        for gajim in (cls.alice, cls.bob):
            gajim.wait_online()
        cls.bob.do("chat", jid=ALICE)
        cls.bob.do("install", archive=str(cls.bob.archive))
        cls.alice.wait_for_component(BOB)
        cls.bob.wait_for_component(ALICE)

    async def asyncSetUp(self):
        # The steps of a user block the loop on purpose; only output of xtls waits for it.
        asyncio.get_running_loop().set_debug(False)
        self.running = []
        self.directory = self.world.directory / f"xtls-{next(self.numbers)}"
        self.directory.mkdir()

    async def asyncTearDown(self):
        for xtls in self.running:
            await xtls.stop()

    def file(self, gajim=None, size=SIZE):
        path = (self.world.directory if gajim is None else gajim.home) / f"letter-{next(self.numbers)}.pdf"
        path.write_bytes(os.urandom(size))
        os.chown(path, NOBODY, NOBODY)
        return path

    def same(self, sent, received):
        self.assertEqual(sent.read_bytes(), received.read_bytes())

    def nothing(self, directory):
        """Nothing was received there since the last look."""
        self.assertEqual([path.name for path in directory.iterdir()], [])

    def taken(self, gajim, sent):
        """What this Gajim has received is the file that was sent. It is taken away."""
        [received] = gajim.downloads.iterdir()
        self.assertEqual(received.name, sent.name)
        self.same(sent, received)
        received.unlink()

    async def xtls(self, *arguments):
        xtls = await self.world.start_xtls(*arguments)
        self.running.append(xtls)
        return xtls

    async def listener(self, *arguments):
        xtls = await self.xtls("listen", "--once", "--out", self.directory, *arguments)
        await xtls.event("listening")
        return xtls

    def new_key_of_xtls(self, *, register):
        for name in ("cert.pem", "key.pem"):
            (self.world.directory / f"xtls/xtls@{DOMAIN}" / name).unlink()
        self.world.xtls("keygen")
        if register:
            self.world.xtls("register")

    def screenshot(self, gajim, window, name):
        """Draws a window; with FINGERPOST_WRITE_SCREENSHOTS into the documentation."""
        name = name if GAJIM_ROOT is None else name.replace("gajim", "gajim2")
        drawn = gajim.home / name
        gajim.do("screenshot", window=window, path=str(drawn))
        self.assertGreater(drawn.stat().st_size, 1000)
        if os.environ.get("FINGERPOST_WRITE_SCREENSHOTS"):
            shutil.copy(drawn, ROOT / "docs" / name)

    @contextlib.contextmanager
    def rejected(self, which, port):
        """Meanwhile nothing in this network reaches a port of the hub."""
        nft = [*self.world.namespace(which), "nft"]
        for command in ("add table inet test", "add chain inet test out { type filter hook output priority 0; }",
                        f"add rule inet test out tcp dport {port} reject with tcp reset"):  # fmt: skip
            subprocess.run([*nft, command], check=True)
        try:
            yield
        finally:
            subprocess.run([*nft, "delete table inet test"], check=True)

    @contextlib.contextmanager
    def without_socks5(self, which, gajim):
        """Meanwhile nothing in the network of this Gajim reaches the component's SOCKS5 port, and it notices."""
        before = len(gajim.log)
        with self.rejected(which, self.world.socks5):
            yield
        self.assertRegex(gajim.log[before:], rf":{self.world.socks5}: .*Connection refused")

    def forget(self, gajim, jid):
        """Removes the accepted key of a user, in the window of keys."""
        gajim.choose("Keys for Encrypted Files", BOB if gajim is self.alice else ALICE)
        gajim.until("the known keys", lambda: jid in (gajim.do("texts", window=KEYS) or []))
        known = [text for text in gajim.do("texts", window=KEYS) if text in (ALICE, BOB, XTLS)][1:]
        gajim.do("click", window=KEYS, button="Remove", number=known.index(jid))
        gajim.until("the removal", lambda: jid not in gajim.do("texts", window=KEYS))
        gajim.do("close", window=KEYS)

    def forget_each_other(self):
        self.forget(self.alice, BOB)
        self.forget(self.bob, ALICE)

    # --- the stories

    def test_01_the_networks_are_apart(self):
        for which, other in (("a", "10.77.2.2"), ("b", "10.77.1.2")):
            route = subprocess.run([*self.world.namespace(which), "ip", "route", "get", other], capture_output=True, text=True, check=True)
            self.assertIn("via 10.77.", route.stdout)
        self.assertEqual(Path("/proc/sys/net/ipv4/ip_forward").read_text().strip(), "0")

    def test_02_the_menu_of_a_chat(self):
        self.alice.do("chat", jid=BOB)
        self.alice.do("resize", window=CHAT, width=900, height=600)
        # The frame that newer Gajims draw belongs to the size that was asked for.
        width = lambda: self.alice.do("size", window=CHAT)[0]
        self.alice.until("the size", lambda: 850 < width() <= 900)
        self.alice.do("open_menu")
        self.alice.until("the menu", lambda: SEND in self.alice.do("menu"))
        self.assertLess({SEND, "Encrypted Files", "Keys for Encrypted Files"}, set(self.alice.do("menu")))
        self.screenshot(self.alice, CHAT, "gajim-plugin-menu.png")
        self.alice.do("choose", entry="Encrypted Files")
        self.alice.until("the window", lambda: self.alice.do("texts", window=FILES))
        self.assertEqual(self.alice.do("rows", window=FILES), [])

    def test_03_an_offer_is_declined(self):
        self.alice.send(BOB, self.file(self.alice))
        offered = self.bob.row("Accept")
        self.assertIn("This key is new to you, and the registry does not know it.", offered["texts"])
        self.assertNotIn(f"{ALICE} is not one of your contacts.", offered["texts"])
        # The window came by itself: what the user types meanwhile must not accept anything.
        self.assertIsNone(self.bob.do("focus", window=FILES))
        self.bob.click("Decline")
        self.bob.row("Ended: you have declined it")
        self.alice.row("Ended: the peer ended the session: decline")
        self.nothing(self.bob.downloads)

    def test_04_keys_are_registered(self):
        self.alice.register(BOB)
        self.bob.register(ALICE)

    def test_05_different_digits_end_it(self):
        for gajim, other in ((self.alice, self.bob), (self.bob, self.alice)):
            self.alice.send(BOB, self.file(self.alice))
            self.bob.click("Accept")
            for one in (self.alice, self.bob):
                one.row(SAME)
            gajim.click(DIFFERENT)
            gajim.row("Ended: you have not accepted the key")
            other.row("Ended: the peer ended the session: security-error")
            self.nothing(self.bob.downloads)

    def test_06_a_first_file(self):
        sent = self.file(self.alice, LARGE)
        self.alice.send(BOB, sent)
        offered = self.bob.row("Accept")
        self.assertIn(f"This key is new to you. The registry has it as a key of {ALICE} (proven).", offered["texts"])
        self.bob.click("Accept")
        mine, theirs = self.alice.row(SAME), self.bob.row(SAME)
        self.assertEqual(digits_of(mine), digits_of(theirs))
        self.assertTrue(any("in a session that you have started" in text for text in mine["texts"]))
        self.assertTrue(any(f"in a session that {ALICE} has started" in text for text in theirs["texts"]))
        self.screenshot(self.bob, FILES, "gajim-plugin-offer.png")
        # The sender accepts. What fits into the buffers goes, and the rest waits for the receiver.
        self.alice.click(SAME)
        moving = self.alice.row("of 60.0")
        self.assertEqual(moving["buttons"], ["Cancel"])
        self.bob.row(SAME)
        self.nothing(self.bob.downloads)
        self.bob.click(SAME)
        self.bob.row("Received whole")
        self.alice.row("has confirmed the whole file")
        self.taken(self.bob, sent)

    def test_07_a_transfer_is_cancelled_on_its_way(self):
        self.forget_each_other()
        for gajim, other in ((self.alice, self.bob), (self.bob, self.alice)):
            self.alice.send(BOB, self.file(self.alice, LARGE))
            self.bob.click("Accept")
            self.alice.click(SAME)
            self.alice.row("of 60.0")
            self.bob.row(SAME)
            if gajim is self.alice:
                self.alice.click("Cancel")
                self.alice.row("Ended: you have cancelled it")
                self.bob.row("Ended: the peer ended the session: cancel")
            else:
                self.bob.click(DIFFERENT)
                self.alice.row("Ended: the peer ended the session: security-error")
            self.nothing(self.bob.downloads)
            # The sender had accepted the receiver's key.
            self.forget(self.alice, BOB)

    def test_08_nobody_is_asked_about_a_known_key(self):
        sent = self.file(self.alice)
        self.alice.send(BOB, sent)
        self.bob.click("Accept")
        self.alice.click(SAME)
        self.bob.click(SAME)
        self.bob.row("Received whole")
        self.taken(self.bob, sent)

        sent = self.file(self.bob)
        self.bob.send(ALICE, sent)
        self.assertIn(f"You have accepted this key of {BOB}.", self.alice.row("Accept")["texts"])
        self.alice.click("Accept")
        self.alice.row("Received whole")
        self.bob.row("has confirmed the whole file")
        self.taken(self.alice, sent)

    def test_09_in_band_where_socks5_fails(self):
        for which, gajim, other in (("a", self.alice, self.bob), ("b", self.bob, self.alice)):
            with self.subTest(in_band=gajim.jid):
                for sender, receiver in ((gajim, other), (other, gajim)):
                    with self.without_socks5(which, gajim):
                        sent = self.file(sender)
                        sender.send(receiver.jid, sent)
                        receiver.click("Accept")
                        receiver.row("Received whole")
                        sender.row("has confirmed the whole file")
                        self.taken(receiver, sent)

    async def test_10_gajim_sends_to_xtls(self):
        for first in (True, False):
            listener = await self.listener()
            sent = self.file(self.alice)
            self.alice.send(XTLS, sent)
            if first:
                digits = digits_of(self.alice.row(SAME))
                self.alice.click(SAME)
            secured = await listener.event("secured")
            if first:
                self.assertEqual((secured["sas"], secured["initiator"]), (digits, ALICE))
            self.assertEqual((secured["first_use"], secured["registry"]), (first, "match"))
            self.alice.row("has confirmed the whole file")
            status, output = await listener.end()
            self.assertEqual(status, 0, output)
            self.same(sent, self.directory / sent.name)

    async def test_11_xtls_sends_to_gajim(self):
        self.world.forget_peers()
        for first, transport in ((True, "s5b"), (False, "ibb")):
            sent = self.file()
            sender = await self.xtls("send", BOB, sent, "--transport", transport)
            offered = self.bob.row("Accept")
            self.assertIn(f"{XTLS} is not one of your contacts.", offered["texts"])
            self.bob.click("Accept")
            if first:
                digits = digits_of(self.bob.row(SAME))
                secured = await sender.event("secured")
                self.assertEqual((secured["sas"], secured["initiator"]), (digits, XTLS))
                self.bob.click(SAME)
            self.bob.row("Received whole")
            status, output = await sender.end()
            self.assertEqual(status, 0, output)
            self.taken(self.bob, sent)

    async def test_12_a_key_that_is_not_the_remembered_one_is_refused(self):
        # The new key is registered, so that only the remembered one speaks against it.
        self.new_key_of_xtls(register=True)
        sent = self.file()
        sender = await self.xtls("send", BOB, sent)
        offered = self.bob.row("NOT a key that you have accepted")
        self.assertEqual(offered["buttons"], ["Decline"])
        self.bob.click("Decline")
        self.assertEqual((await sender.end())[0], 5)
        self.nothing(self.bob.downloads)

        listener = await self.listener()
        self.alice.send(XTLS, self.file(self.alice))
        self.alice.row(f"Ended: {XTLS} shows a key that is not one of those remembered")
        self.assertNotEqual((await listener.end())[0], 0)
        self.nothing(self.directory)

    async def test_13_a_removed_key_is_asked_about_again(self):
        self.alice.choose("Keys for Encrypted Files", BOB)
        look = lambda: self.alice.do("texts", window=KEYS) or []
        self.alice.until("the known keys", lambda: BOB in look() and XTLS in look())
        self.screenshot(self.alice, KEYS, "gajim-plugin-keys.png")
        self.alice.do("close", window=KEYS)
        self.forget(self.alice, XTLS)
        listener = await self.listener()
        sent = self.file(self.alice)
        self.alice.send(XTLS, sent)
        self.alice.click(SAME)
        self.alice.row("has confirmed the whole file")
        self.assertEqual((await listener.end())[0], 0)
        self.same(sent, self.directory / sent.name)

    async def test_14_a_key_against_the_registry_is_refused_before_anybody_is_asked(self):
        self.new_key_of_xtls(register=False)
        sender = await self.xtls("send", BOB, self.file())
        refused = self.bob.row(f"An offer of {XTLS} was refused")
        self.assertTrue(any("mismatch" in text for text in refused["texts"]), refused)
        self.assertEqual(refused["buttons"], [])
        self.assertNotEqual((await sender.end())[0], 0)
        self.nothing(self.bob.downloads)

    def test_15_a_lost_connection_ends_a_transfer(self):
        self.alice.send(BOB, self.file(self.alice))
        self.bob.row("Accept")
        self.alice.do("disconnect")
        self.alice.row("Ended: the connection to the server was lost")
        self.bob.row("Ended: ")
        self.nothing(self.bob.downloads)
        self.alice.do("connect")
        self.alice.wait_online()
        sent = self.file(self.bob)
        self.bob.send(ALICE, sent)
        self.alice.click("Accept")
        self.alice.row("Received whole")
        self.taken(self.alice, sent)

    def test_16_a_resumed_connection_keeps_a_transfer(self):
        # A first key again: the transfer waits for its users while the connection is cut.
        self.forget_each_other()
        sent = self.file(self.alice)
        self.alice.send(BOB, sent)
        self.bob.click("Accept")
        for gajim in (self.alice, self.bob):
            gajim.row(SAME)
        with self.rejected("a", self.world.c2s):
            self.alice.until("the cut", lambda: self.alice.do("poke") or not all(self.alice.do("online").values()))
        self.alice.wait_online()
        for gajim in (self.bob, self.alice):
            gajim.click(SAME)
        self.bob.row("Received whole")
        self.alice.row("has confirmed the whole file")
        self.taken(self.bob, sent)

    def test_17_the_plugin_goes_and_comes_back(self):
        self.bob.do("deactivate", name="fingerpost")
        self.bob.do("chat", jid=XTLS)
        self.bob.do("chat", jid=ALICE)
        self.bob.do("open_menu")
        self.bob.until("the menu", lambda: self.bob.do("menu"))
        self.assertNotIn(SEND, self.bob.do("menu"))
        # The chat that is shown gets its entries at once.
        self.bob.do("activate", name="fingerpost")
        self.bob.do("open_menu")
        self.bob.until("the entry", lambda: SEND in self.bob.do("menu"))
        self.bob.wait_for_component(ALICE)
        self.bob.do("configure", name="fingerpost")
        self.bob.until("the window of keys", lambda: ALICE in (self.bob.do("texts", window=KEYS) or []))
        self.bob.do("close", window=KEYS)
        sent = self.file(self.bob)
        self.bob.send(ALICE, sent)
        self.alice.click("Accept")
        self.alice.row("Received whole")
        self.taken(self.alice, sent)

    def test_18_each_account_has_its_own_keys(self):
        # Carol's account is the second one of Bob's Gajim.
        sent = self.file(self.alice)
        self.alice.send(CAROL, sent)
        self.bob.click("Accept")
        mine, theirs = self.alice.row(SAME), self.bob.row(SAME)
        self.assertEqual(digits_of(mine), digits_of(theirs))
        self.assertIn(f"(your account {CAROL})", theirs["texts"][0])
        self.assertNotIn("your account", mine["texts"][0])
        self.alice.click(SAME)
        self.bob.click(SAME)
        self.bob.row("Received whole")
        self.taken(self.bob, sent)
        self.bob.choose("Keys for Encrypted Files", ALICE)
        self.bob.until("the window of keys", lambda: CAROL in (self.bob.do("texts", window=KEYS) or []))
        shown = self.bob.do("texts", window=KEYS)
        self.assertEqual([text for text in shown if text in (ALICE, BOB, CAROL)], [BOB, ALICE, CAROL, ALICE])
        self.assertEqual(sum("does not have it" in text for text in shown), 1)
        self.bob.do("close", window=KEYS)

    def test_19_files_without_tls(self):
        if GAJIM_ROOT is None:
            self.skipTest("Gajim 1.7 takes them itself")
        offer = f"""
            <iq xmlns='jabber:client' type='set' to='{BOB}/gajim' id='plain-1'><jingle xmlns='urn:xmpp:jingle:1' action='session-initiate' sid='plain'
             initiator='{ALICE}/gajim'><content creator='initiator' name='file' senders='initiator'>
              <description xmlns='urn:xmpp:jingle:apps:file-transfer:5'><file><name>letter.pdf</name><size>5</size></file></description>
              <transport xmlns='urn:xmpp:jingle:transports:ibb:1' block-size='4096' sid='plain-ibb'/>
            </content></jingle></iq>"""
        self.alice.do("send", stanza=offer)
        self.alice.until("the refusal", lambda: any(
            "session-terminate" in stanza and "unsupported-applications" in stanza and "encrypted end to end" in stanza
            for stanza in self.alice.do("received")
        ))  # fmt: skip
        self.nothing(self.bob.downloads)

    def test_99_no_handler_has_failed(self):
        for gajim in (self.alice, self.bob):
            self.assertIsNone(re.search("Traceback|Error executing", gajim.log), gajim.log)
            self.assertNotIn("Gajim - Error", gajim.do("windows"))


if __name__ == "__main__":
    unittest.main(verbosity=2, failfast=True)
