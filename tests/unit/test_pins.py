"""What pyproject.toml lets a resolver choose."""

import tomllib

from tests.install import ROOT


def test_only_the_server_caps_grpcio() -> None:
    """An application may use the client with a newer grpcio; the server's packages of that family share one cap."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    client = [each for each in project["dependencies"] if each.startswith("grpcio")]
    server = [each for each in project["optional-dependencies"]["server"] if each.startswith("grpcio")]
    assert [] == [each for each in client if "<" in each]
    assert {"<1.79"} == {each.rpartition(",")[2] for each in server}
    families = [{each.partition(">")[0] for each in of} for of in (client, server)]
    assert {"grpcio-reflection"} == families[1] - families[0]
    assert set() == families[0] - families[1]
