#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Prints the `parameters` text of a PNG; checks the file's structure and sums on the way."""

import struct
import sys
import zlib


def chunks(data):
    assert data[:8] == b"\x89PNG\r\n\x1a\n", "no PNG"
    at = 8
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at:at + 8])
        body = data[at + 8:at + 8 + length]
        (crc,) = struct.unpack(">I", data[at + 8 + length:at + 12 + length])
        assert zlib.crc32(kind + body) == crc, f"bad sum of {kind}"
        yield kind, body
        at += 12 + length
    assert kind == b"IEND", "cut off"


def parameters(data):
    for kind, body in chunks(data):
        if kind == b"tEXt" and body.startswith(b"parameters\0"):
            return body[11:].decode("latin-1")
        if kind == b"iTXt" and body.startswith(b"parameters\0\0\0"):
            return body[13:].split(b"\0", 1)[1].decode()
    return None


if __name__ == "__main__":
    with open(sys.argv[1], "rb") as file:
        print(parameters(file.read()))
