"""Logs every user in; shows that the server stands. Gives the component's disco#info features if there is one."""

from peer import TIMEOUT, Peer, main


async def story(settings):
    jids, features = [], None
    for name in settings["users"]:
        peer = await Peer(settings, name, "desk").login()
        jids.append(str(peer.boundjid))
        if settings.get("disco") and features is None:
            info = await peer.plugin["xep_0030"].get_info(settings["component"], timeout=TIMEOUT)
            items = await peer.plugin["xep_0030"].get_items(peer.boundjid.domain, timeout=TIMEOUT)
            features = {
                "identities": sorted(f"{i[0]}/{i[1]}" for i in info["disco_info"]["identities"]),
                "features": sorted(info["disco_info"]["features"]),
                "items": sorted(str(item[0]) for item in items["disco_items"]["items"]),
            }
        await peer.disconnect()
    return {"jids": jids, "disco": features}


main(story)
