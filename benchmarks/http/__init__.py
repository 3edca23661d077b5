"""What the HTTP edge costs: bytes in and out, many who wait, many jobs."""
