from __future__ import annotations

import pytest

from layerstore.formats.checksums import crc32c, xxh32


@pytest.mark.parametrize(
    ("payload", "checksum"),
    [
        pytest.param(b"", 0xFFFFFFFF, id="empty"),
        # The catalogue's check value of CRC-32C is 0xE3069283: this one's inverse.
        pytest.param(b"123456789", 0x1CF96D7C, id="check value"),
        pytest.param(bytes(32), 0x8A9136AA ^ 0xFFFFFFFF, id="RFC 3720 B.4, zeros"),
        pytest.param(b"\xff" * 32, 0x62A8AB43 ^ 0xFFFFFFFF, id="RFC 3720 B.4, ones"),
        pytest.param(bytes(range(32)), 0x46DD794E ^ 0xFFFFFFFF, id="RFC 3720 B.4, ascending"),
    ],
)
def test_crc32c_is_castagnolis_without_the_last_inversion(payload: bytes, checksum: int) -> None:
    assert crc32c(payload) == checksum
    assert crc32c(bytearray(payload)) == crc32c(memoryview(payload)) == checksum


@pytest.mark.parametrize(
    ("payload", "seed", "expected"),
    [
        pytest.param(b"", 0, 0x02CC5D05, id="empty"),
        pytest.param(b"a", 0, 0x550D7456, id="one byte"),
        pytest.param(b"abc", 0, 0x32D153FF, id="less than a word"),
        pytest.param(b"capability", 0x25BBE08F + 6, 0x8C47AC5D, id="words, bytes and a seed"),
        pytest.param(b"0123456789abcdef", 0, 0xC2C45B69, id="one stripe"),
        pytest.param(b"overlay.redirect", 0x25BBE08F + 4, 0x887EC271, id="one stripe and a seed"),
        pytest.param(bytes(range(101)), 0, 0x1A20E95B, id="stripes, a word and a byte"),
        pytest.param(bytes(range(101)), 0x9E3779B1, 0x37B352EE, id="the same with a large seed"),
    ],
)
def test_xxh32_gives_what_the_reference_implementation_gives(
    payload: bytes, seed: int, expected: int
) -> None:
    assert xxh32(payload, seed) == expected
