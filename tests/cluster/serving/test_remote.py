"""Pictures by URL: from public addresses only, whatever leads to another."""

import asyncio
import socket

import pytest
from aiohttp import web

from cluster.serving import remote
from cluster.serving.errors import ApiError
from cluster.serving.remote import fetch_picture, is_public
from tests.cluster.serving.endpoint import chat, encoded, endpoint, image_part, text_part


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        ("127.0.0.1", False),
        ("0.0.0.0", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),  # metadata of clouds
        ("100.64.0.1", False),  # carrier-grade NAT
        ("224.0.0.1", False),
        ("239.1.2.3", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:93.184.216.34", True),
        ("64:ff9b::7f00:1", False),  # 127.0.0.1 through NAT64
        ("2002:7f00:1::", False),  # 127.0.0.1 through 6to4
    ],
)
def test_addresses(address, expected):
    assert is_public(address) == expected


@pytest.fixture
async def site():
    """A web server on loopback; (its address, the paths that were asked for)."""
    asked = []

    async def answer(request):
        asked.append(request.path)
        if request.path == "/slow":
            await asyncio.sleep(1)
        if request.path == "/loop":
            raise web.HTTPFound("/loop")
        if request.path == "/moved":
            raise web.HTTPFound("/picture")
        if request.path == "/missing":
            raise web.HTTPNotFound
        if request.path == "/compressed":
            return web.Response(body=b"\0" * 100, headers={"Content-Encoding": "gzip"})
        return web.Response(body=encoded("green") if request.path == "/picture" else b"x" * 300_000)

    application = web.Application()
    application.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(application)
    await runner.setup()
    server = web.TCPSite(runner, "127.0.0.1", 0)
    await server.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}", asked
    await runner.cleanup()


def any_socket(address):
    family, kind, protocol, _, _ = address
    return socket.socket(family=family, type=kind, proto=protocol)


async def test_a_picture_is_fetched_after_a_redirect(site):
    address, _ = site
    for path in ("/picture", "/moved"):
        found = await fetch_picture(address + path, max_bytes=200_000, socket_factory=any_socket)
        assert found == encoded("green")


@pytest.mark.parametrize(
    ("path", "status", "reason"),
    [
        ("/missing", 400, "answered 404"),
        ("/large", 413, "at most 200000"),
        ("/loop", 400, "redirected more than 3 times"),
        ("/slow", 400, "did not arrive within"),
    ],
)
async def test_what_is_not_to_be_had_is_told(site, path, status, reason, monkeypatch):
    monkeypatch.setattr(remote, "TIMEOUT_S", 0.5)
    with pytest.raises(ApiError, match=reason) as failure:
        await fetch_picture(site[0] + path, max_bytes=200_000, socket_factory=any_socket)
    assert failure.value.status == status


async def test_what_arrives_compressed_is_not_inflated(site):
    found = await fetch_picture(site[0] + "/compressed", max_bytes=200, socket_factory=any_socket)
    assert found == b"\0" * 100


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "127.1", "[::ffff:127.0.0.1]"])
async def test_no_way_of_writing_loopback_reaches_it(site, host):
    address, asked = site
    port = address.rpartition(":")[2]
    with pytest.raises(ApiError, match="could not be fetched") as failure:
        await fetch_picture(f"http://{host}:{port}/picture", max_bytes=200_000)
    assert failure.value.status == 400
    assert asked == []


async def test_a_redirect_into_the_own_network_is_not_followed(site):
    """The first address passes as a public one; the check is made again where the redirect leads."""
    address, asked = site
    seen = []

    def public_at_first(info):
        seen.append(info)
        return any_socket(info) if len(seen) == 1 else remote._public_socket(info)

    with pytest.raises(ApiError, match="its address is not public"):
        await fetch_picture(f"{address}/moved", max_bytes=200_000, socket_factory=public_at_first)
    assert asked == ["/moved"]


async def test_an_endpoint_fetches_only_if_it_may(site):
    address, asked = site
    content = [image_part(f"{address}/picture"), text_part("which colour?")]
    body = {**chat(), "messages": [{"role": "user", "content": content}]}
    async with endpoint() as here:
        assert "remote pictures are off" in (await here.post(body)).json()["error"]["message"]
    async with endpoint(allow_remote_images=True) as here:
        reply = await here.post(body)
        assert (reply.status_code, reply.json()["error"]["code"]) == (400, "invalid_image")
        assert "not public" in reply.json()["error"]["message"]
    assert asked == []
