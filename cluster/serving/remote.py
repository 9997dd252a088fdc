"""Fetches a picture from a URL that a stranger has given, without being led into the network that this runs in.

The check is made on the address that is about to be connected to. It holds for redirects, for addresses in place of
names, and for names that change their address between two look-ups.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable
from typing import Any

import aiohttp

from cluster.serving.errors import ApiError, bad_picture
from cluster.serving.requests import too_large

TIMEOUT_S = 10.0
MAX_REDIRECTS = 3
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class PrivateAddressError(OSError):
    """The URL leads to an address that is not of the public Internet."""


def is_public(address: str) -> bool:
    """Whether an IP address is of the public Internet, and is not a way of writing one that is not."""
    ip = ipaddress.ip_address(address.split("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return is_public(str(ip.ipv4_mapped))
        if ip.sixtofour is not None or ip.teredo is not None or ip in _NAT64:
            return False  # carries an IPv4 address, which the gateway would connect to
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def _public_socket(address: Any) -> socket.socket:
    family, kind, protocol, _, where = address
    if not is_public(where[0]):
        raise PrivateAddressError("not a public address")
    return socket.socket(family=family, type=kind, proto=protocol)


async def fetch_picture(
    url: str,
    *,
    max_bytes: int,
    on_size: Callable[[int], None] = lambda size: None,
    socket_factory: Any = _public_socket,
) -> bytes:
    """The content of an http(s) URL. `on_size` is told what has arrived so far, in bytes, and may end it by an error.

    Raises:
        ApiError: it is not on the public Internet, does not answer in time, or is too large.
    """
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    connector = aiohttp.TCPConnector(socket_factory=socket_factory, force_close=True)
    headers = {"Accept": "image/*", "Accept-Encoding": "identity"}
    try:
        # No cookies, no proxy of the environment, no decompression: what arrives is what is counted.
        async with (
            aiohttp.ClientSession(
                connector=connector, timeout=timeout, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()
            ) as session,
            session.get(url, headers=headers, max_redirects=MAX_REDIRECTS) as reply,
        ):
            if reply.status != 200:
                raise _refused(f"its server answered {reply.status}")
            content = bytearray()
            async for piece in reply.content.iter_chunked(1 << 16):
                content += piece
                if len(content) > max_bytes:
                    raise too_large(len(content), max_bytes)
                on_size(len(content))
            return bytes(content)
    except TimeoutError as error:
        raise _refused(f"it did not arrive within {TIMEOUT_S:g} s") from error
    except aiohttp.TooManyRedirects as error:
        raise _refused(f"it is redirected more than {MAX_REDIRECTS} times") from error
    except (aiohttp.ClientError, PrivateAddressError, ValueError, asyncio.IncompleteReadError) as error:
        is_private = isinstance(error, PrivateAddressError) or isinstance(
            getattr(error, "os_error", None), PrivateAddressError
        )
        why = "its address is not public" if is_private else "its server cannot be reached"
        raise _refused(why) from error


def _refused(why: str) -> ApiError:
    return bad_picture(f"the picture could not be fetched: {why}", param="messages")
