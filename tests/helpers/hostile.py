"""x"""
import struct
def gif(width: int, height: int, frames: int = 3) -> bytes:
    """An animated GIF of a few bytes whose canvas has this size; each of its pictures has one pixel."""
    out = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    for n in range(frames):
        out += b"!\xf9\x04\x04" + struct.pack("<H", 10) + b"\0\0"
        out += b"," + struct.pack("<HHHHB", n, 0, 1, 1, 0) + b"\x02\x02\x44\x01\0"
    return out + b";"
