"""One cause, one red line: what the others say that could not be looked at because of it."""

from __future__ import annotations

import pytest

from sycoca_ds.launch.findings import COLUMNS, OF_A_HOST, Finding, not_checked, table, things_to_do, worst

HOSTS = [f"n{number}" for number in range(16)]
SILENT = ("it does not answer within 10 s", "is it switched on, and the address right? `ping {host}`")


def no_ssh(host: str) -> Finding:
    return Finding(host, "ssh", "fail", SILENT[0], SILENT[1].format(host=host))


def green(host: str, *but: str) -> list[Finding]:
    return [Finding(host, check, "ok") for check in OF_A_HOST if check not in but]


def with_skips(found: list[Finding], answered: set[str], hosts: list[str] = HOSTS) -> list[Finding]:
    return [*found, *not_checked(found, hosts, answered)]


def test_hosts_without_ssh_are_one_red_line() -> None:
    found = with_skips([no_ssh(host) for host in HOSTS], set())
    lines, red = things_to_do(found, colour=False)
    assert red == 1 and lines == [
        f"FAIL ssh, n0, n1, n2, n3 and 12 more: {SILENT[0]} -> is it switched on, and the address right? `ping HOST`",
        "- everything else, n0, n1, n2, n3 and 12 more: not checked: no ssh",
    ]
    assert {worst(found, "n7", check) for check in COLUMNS if check != "ssh"} == {""} and worst(found, "n7", "ssh") == "fail"
    assert table(found, HOSTS, width=132, colour=False).count("FAIL") == 16
    assert "\x1b[1;31m" not in things_to_do(found, colour=True)[0][1]


def test_one_host_without_ssh_hides_nothing_of_the_others() -> None:
    found = [*green("n0"), no_ssh("n1"), *green("n2", "data"), Finding("n2", "data", "fail", "is not there", "copy it")]
    lines, red = things_to_do(with_skips(found, {"n0", "n2"}, HOSTS[:3]), colour=False)
    assert red == 2 and lines == [
        f"FAIL ssh, n1: {SILENT[0]} -> is it switched on, and the address right? `ping n1`",
        "FAIL data, n2: is not there -> copy it",
        "- everything else, n1: not checked: no ssh",
    ]


def test_what_needs_the_first_host_is_not_checked_without_it() -> None:
    found = [no_ssh("n0"), *green("n1", "master", "reach", "folder"), *green("n2", "master", "reach", "folder")]
    lines, red = things_to_do(with_skips(found, {"n1", "n2"}, HOSTS[:3]), colour=False)
    assert red == 1 and lines[1:] == [
        "- everything else, n0: not checked: no ssh",
        "- master, reach, folder, n1, n2: not checked: no answer from n0",
    ]


@pytest.mark.parametrize(
    "answered, said",
    [({"n0"}, "- operators, n0: not checked: python is red"), (set(), "- everything else, n0: not checked: python is red")],
)
def test_an_environment_that_is_not_there_is_one_red_line(answered: set[str], said: str) -> None:
    """With an answer of the host, as where torch cannot be imported, and without one."""
    broken = Finding("n0", "python", "fail", "No module named 'torch'", "install the environment there as here (`make install`)")
    found = [broken, *(green("n0", "python", "operators") if answered else [])]
    lines, red = things_to_do(with_skips(found, answered, ["n0"]), colour=False)
    assert red == 1 and lines[1:] == [said]


def test_nothing_is_added_where_all_was_looked_at() -> None:
    """--data was not given, and one host reaches nobody: no cause, no word."""
    assert list(not_checked(green("n0", "data", "reach"), ["n0"], {"n0"})) == []


def test_hosts_with_different_faults_keep_their_lines() -> None:
    found = [
        Finding("a", "gpus", "fail", "7 GPUs for 8 slots", "write slots=7"),
        Finding("b", "gpus", "fail", "6 GPUs for 8 slots", "write slots=6"),
        Finding("node", "ssh", "warn", "its login prints 'node-b' unasked", "look at node.cluster and my-node"),
        Finding("node-b", "ssh", "warn", "its login prints 'node-b' unasked", "look at node.cluster and my-node"),
    ]
    lines, red = things_to_do(found, colour=False)
    assert red == 2 and len(lines) == 4, lines
