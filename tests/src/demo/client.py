"""What an agent might write itself: one attempt, whose outcome is the last line printed."""

import errno
import http.client
import pathlib
import socket
import ssl
import struct
import sys


def https(name):
    trusted = pathlib.Path(__file__).with_name("ca.pem")
    context = ssl.create_default_context(cafile=str(trusted))
    connection = http.client.HTTPSConnection(name, timeout=5, context=context)
    connection.request("GET", "/")
    return connection.getresponse().status


def udp(address, port):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"all that the agent knows", (address, int(port)))
    return "sent"


def dns(server, name):
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    question = struct.pack(">6H", 4711, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">2H", 1, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        client.sendto(question, (server, 53))
        flags = client.recv(4096)[3]
    return {0: "resolved", 3: "unresolved"}.get(flags & 15, f"code {flags & 15}")


def ping(address):
    echo = struct.pack(">2B3H", 8, 0, 0, 0, 1) + b"clawbox"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP) as pinger:
        pinger.settimeout(5)
        pinger.sendto(echo, (address, 0))
        pinger.recv(4096)
    return "answered"


def raw():
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP):
        return "opened"


try:
    print(globals()[sys.argv[1]](*sys.argv[2:]))
except socket.gaierror:
    print("unresolved")
except OSError as error:
    print(errno.errorcode.get(error.errno, error))
