"""The smallest HTTP client that can score: one keep-alive connection, binary tensors, no library in the way."""

from __future__ import annotations

import json
import socket
from typing import Any

import numpy as np


def request(model: str, name: str, array: np.ndarray[Any, Any], *, binary: bool = True) -> bytes:
    """A whole HTTP request."""
    tensor: dict[str, Any] = {"name": name, "shape": list(array.shape), "datatype": "FP32"}
    if binary:
        data = array.tobytes()
        tensor["parameters"] = {"binary_data_size": len(data)}
    else:
        data = b""
        tensor["data"] = array.reshape(-1).tolist()
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": binary}}).encode()
    extra = f"Inference-Header-Content-Length: {len(head)}\r\n" if binary else ""
    lines = (
        f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: x\r\n{extra}Content-Length: {len(head) + len(data)}\r\n\r\n"
    )
    return lines.encode() + head + data


class Client:
    """Connects anew when the connection is lost; a lost request is reported, never hidden."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._socket = self._connect()

    def _connect(self) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self._port), timeout=30)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def ask(self, request: bytes) -> tuple[int, bytes]:
        """(status, body); status 0: the connection broke."""
        try:
            self._socket.sendall(request)
            return self._answer()
        except OSError as error:
            self._socket.close()
            self._socket = self._connect()
            return 0, str(error).encode()

    def _answer(self) -> tuple[int, bytes]:
        data = b""
        while (end := data.find(b"\r\n\r\n")) < 0:
            data += self._more()
        start = data.index(b"Content-Length: ", data.index(b"\r\nContent-Length")) + 16
        length = int(data[start : data.index(b"\r\n", start)])
        while len(data) < end + 4 + length:
            data += self._more()
        return int(data[9:12]), data[end + 4 :]

    def _more(self) -> bytes:
        data = self._socket.recv(262144)
        if not data:
            raise ConnectionResetError("the server closed the connection")
        return data

    def close(self) -> None:
        self._socket.close()
