import socket

from appservice_bridge.dev.ports import HOLDS_PORTS, LoopbackPort


def test_a_held_port_can_be_listened_on_and_is_nobody_elses() -> None:
    port = LoopbackPort()
    with socket.socket() as server, socket.socket() as stranger:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if HOLDS_PORTS:
            assert stranger.connect_ex(("127.0.0.1", port.number)) != 0
        server.bind(("127.0.0.1", port.number))
        server.listen()
        assert stranger.connect_ex(("127.0.0.1", port.number)) == 0
    again = LoopbackPort(port.number)
    assert again.address == port.address
    others = [LoopbackPort() for _ in range(50)]
    assert port.number not in {other.number for other in others}
    for held in (port, again, *others):
        held.release()
