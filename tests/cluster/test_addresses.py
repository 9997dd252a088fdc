"""Which cluster is meant, and what is said of one that cannot be joined."""

import pytest

from cluster.addresses import (
    LOOPBACK,
    ClusterAddress,
    Versions,
    bypass_proxies,
    explain_refused,
    explain_unreachable,
    find_cluster,
    own_hosts,
    version_problem,
)


def note(folder, text):
    (folder / "ray").mkdir()
    (folder / "ray" / "ray_current_cluster").write_text(text)
    return {"RAY_TMPDIR": str(folder)}


@pytest.mark.parametrize(
    ("given", "host", "port"),
    [("10.0.0.5:6379", "10.0.0.5", 6379), (" head.local:80 ", "head.local", 80), ("[fd00::1]:6379", "fd00::1", 6379)],
)
def test_an_address_of_the_environment_wins_over_a_note(given, host, port, tmp_path):
    found = find_cluster(note(tmp_path, "127.0.0.1:1") | {"RAY_ADDRESS": given})
    assert found is not None
    assert (found.host, found.port) == (host, port)
    assert str(found) == given.strip()


@pytest.mark.parametrize("variable", ["RAY_TMPDIR", "TMPDIR"])
@pytest.mark.parametrize("address", ["", "auto"])
def test_the_note_of_a_head_on_this_machine_is_read_where_ray_leaves_it(variable, address, tmp_path):
    (environment,) = [note(tmp_path, "127.0.0.1:6411\n")]
    found = find_cluster({variable: environment["RAY_TMPDIR"], "RAY_ADDRESS": address})
    assert found is not None
    assert found.port == 6411
    assert str(tmp_path) in found.source
    assert "ray stop" in found.remedy


@pytest.mark.parametrize("environment", [{"RAY_ADDRESS": "local"}, {"RAY_ADDRESS": ""}, {}])
def test_without_an_address_ray_is_started_here(environment, tmp_path):
    assert find_cluster({"RAY_TMPDIR": str(tmp_path), **environment}) is None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("ray://127.0.0.1:10001", "is an address for Ray Client"),
        ("http://127.0.0.1:8265", "is no address of a cluster"),
        ("head", "write HOST:PORT"),
        ("head:", "write HOST:PORT"),
        (":6379", "write HOST:PORT"),
        ("head:port", "write HOST:PORT"),
        ("head:0", "write HOST:PORT"),
        ("head:70000", "write HOST:PORT"),
    ],
)
def test_what_a_driver_cannot_join_is_refused_with_the_remedy(given, words):
    with pytest.raises(ValueError, match=words) as failure:
        find_cluster({"RAY_ADDRESS": given})
    assert f"RAY_ADDRESS={given}" in str(failure.value)
    assert "\n" not in str(failure.value)


def test_each_failure_names_the_address_and_the_remedy():
    address = ClusterAddress(host="10.0.0.5", port=6379, source="RAY_ADDRESS=10.0.0.5:6379", remedy="start it")
    lines = [
        explain_unreachable(address, "Connection refused"),
        explain_refused(address, "Authentication token is missing"),
        version_problem(address, Versions(ray="2.60.0", python="3.11.7"), Versions(ray="2.59.1", python="3.11.7")),
        version_problem(address, Versions(ray="2.60.0", python="3.11.7"), Versions(ray="2.60.0", python="3.12.1")),
    ]
    for line in lines:
        assert line is not None
        assert "10.0.0.5:6379" in line
        assert "\n" not in line
    assert "RAY_AUTH_MODE=token" in str(lines[1])
    assert "Ray 2.59.1" in str(lines[2])
    assert "Python 3.12.1" in str(lines[3])


def test_the_same_versions_are_no_problem():
    address = ClusterAddress(host="h", port=1, source="", remedy="")
    versions = Versions(ray="2.60.0", python="3.11.7")
    assert version_problem(address, versions, versions) is None


@pytest.mark.parametrize(
    ("environment", "kept"),
    [
        ({}, "localhost,127.0.0.1,::1,10.0.0.5"),
        ({"no_proxy": "a.com, b.com"}, "a.com,b.com,localhost,127.0.0.1,::1,10.0.0.5"),
        ({"NO_PROXY": "a.com,localhost", "no_proxy": "b.com"}, "b.com,a.com,localhost,127.0.0.1,::1,10.0.0.5"),
        ({"NO_PROXY": "*"}, "*"),
    ],
)
def test_no_proxy_sees_loopback_or_the_cluster(environment, kept):
    assert bypass_proxies(environment, [*LOOPBACK, "10.0.0.5"]) == {"no_proxy": kept, "NO_PROXY": kept}
    again = bypass_proxies(bypass_proxies(environment, LOOPBACK), LOOPBACK)
    assert again == bypass_proxies(environment, LOOPBACK)


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        ("http://127.0.0.1:8265", ["127.0.0.1"]),
        ("http://10.1.2.3:8265/", ["10.1.2.3"]),
        ("192.168.0.9:8265", ["192.168.0.9"]),
        ("http://[::1]:8265", ["::1"]),
        ("http://localhost:8265", ["localhost"]),
        ("https://ray.example.com", []),
        ("http://8.8.8.8:80", []),
    ],
)
def test_a_private_dashboard_is_never_behind_a_proxy(url, hosts):
    assert own_hosts(url) == hosts
