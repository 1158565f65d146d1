"""TLS to Consul: who is trusted, what we show, and what is said when it does not fit."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from litereplica.errors import Misconfigured, Refused
from litereplica.lease.consul_client import Tls
from tests.lease.support import Place, endpoint, held, member, place
from tests.support.consul import Agent, Consuls, program

pytestmark = pytest.mark.timeout(60)
LIMIT_S = 5.0


@dataclass(frozen=True)
class Authority:
    folder: Path

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.pem"

    def make(self, *arguments: str) -> None:
        subprocess.run([program(), "tls", *arguments], cwd=self.folder, check=True, capture_output=True, timeout=30)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Consul's own tool makes certificates: an authority, a server's and a client's."""
    made = Authority(tmp_path_factory.mktemp("tls"))
    made.make("ca", "create")
    made.make("cert", "create", "-server")
    made.make("cert", "create", "-client")
    return made


@pytest.fixture
def agent(consuls: Consuls, authority: Authority) -> Agent:
    """An agent that wants a certificate from its clients."""
    files = {
        "ca_file": str(authority.path("consul-agent-ca")),
        "cert_file": str(authority.path("dc1-server-consul-0")),
        "key_file": str(authority.path("dc1-server-consul-0-key")),
    }
    return consuls.single(tls=files | {"verify_incoming_https": True})


def tls(authority: Authority, *, client: bool = True) -> Tls:
    name = "dc1-client-consul-0"
    return Tls(
        ca=authority.path("consul-agent-ca"),
        cert=authority.path(name) if client else None,
        key=authority.path(f"{name}-key") if client else None,
    )


async def hold(kept: Place, chosen: Tls) -> None:
    lease, mine = await held(kept, tls=chosen)
    await lease.release(await lease.renew(mine))
    await lease.close()


async def test_certificates_of_both_sides(agent: Agent, authority: Authority) -> None:
    async with place(agent) as kept:
        await hold(kept, tls(authority))
        trusting = Tls(cert=tls(authority).cert, key=tls(authority).key, verify=False)
        await hold(kept, trusting)
        at = endpoint("b")
        with pytest.raises(Refused, match=r"is not trusted: set lease\.consul\.tls\.ca"):
            await kept.lease(at, tls=Tls(cert=tls(authority).cert, key=tls(authority).key)).join("", member(at))
        with pytest.raises(Refused, match=r"set lease\.consul\.tls\.cert and lease\.consul\.tls\.key"):
            await kept.lease(at, tls=tls(authority, client=False)).join("", member(at))
        with pytest.raises(Refused, match=r"write https:// in lease\.consul\.urls"):
            await kept.lease(at, urls=[agent.url.replace("https:", "http:")]).join("", member(at))


def test_files_that_cannot_be_used_are_named(authority: Authority, tmp_path: Path) -> None:
    nothing = tmp_path / "nothing.pem"
    with pytest.raises(Misconfigured, match=r"nothing\.pem"):
        Tls(ca=nothing).context()
    nothing.write_text("no certificate", encoding="utf-8")
    with pytest.raises(Misconfigured, match=r"nothing\.pem"):
        Tls(cert=nothing, key=authority.path("dc1-client-consul-0-key")).context()
