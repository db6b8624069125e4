"""Puts one key of a user in the place of another at the registry. Settings: user, replaces (an id), certificate (PEM)."""

import base64
import ssl

from peer import KEYS, Peer, main


async def story(settings):
    user = await Peer(settings, settings["user"], "replace").login()
    material = base64.b64encode(ssl.PEM_cert_to_DER_cert(settings["certificate"])).decode()
    answer = await user.request(
        settings["component"],
        f"<add xmlns='{KEYS}'><key method='x509' label='next' replaces='{settings['replaces']}'>"
        f"<material>{material}</material></key></add>",
        "set",
    )
    return {"state": answer.xml[0].get("state")}


main(story)
