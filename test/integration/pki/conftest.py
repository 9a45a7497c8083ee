"""A client of libvirt's port that shows whatever certificate it is given, and leaves the verdict to the server."""

import pytest

# virsh looks at its own certificate first, and with a bad one it never gets as far as the server: this one has no such
# scruples. It does not look at the server's certificate either, so that whoever refuses here is the server.
# libvirt sends one byte, 1, to a client that it lets in. Under TLS 1.3 a refusal arrives after the client's handshake.
SHOWING = """
import socket, ssl, sys
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname = False
context.verify_mode = ssl.CERT_NONE
context.load_cert_chain(*sys.argv[1:])
with socket.create_connection(("hv2", 16514), 20) as plain:
    print("connected", flush=True)
    try:
        with context.wrap_socket(plain) as tls:
            tls.settimeout(20)
            print("answer", list(tls.recv(1)))
    except (ssl.SSLError, ConnectionError) as error:
        print("refused", error)
"""


@pytest.fixture
def let_in(lab):
    """Says whether hv2's port lets in hv1 with a certificate and its key, which are the paths of files on hv1."""

    def ask(cert, key):
        printed = lab.run("hv1", ["python3", "-", cert, key], stdin=SHOWING, timeout=60).stdout
        assert printed.startswith("connected"), "the port must be open for this to prove anything"
        good = "answer [1]" in printed
        assert good or "refused" in printed or "answer []" in printed, printed
        return good

    return ask
