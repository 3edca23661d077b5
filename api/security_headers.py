"""What browsers are told of every answer: the one place that says what a page of ours may load and who may frame it."""

from collections.abc import Mapping

# Answers for programs: a browser that shows one loads and runs nothing for it.
_NOTHING = "default-src 'none'; frame-ancestors 'none'"
# Pages: everything that they load comes from this service, nothing stands inline, and nothing of theirs goes elsewhere.
_OWN_PARTS = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; connect-src 'self';"
    " form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_EVERYWHERE = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    # What a key may read is not for shared caches.
    "Cache-Control": "private, no-cache",
}


def security_headers(content_type: str) -> Mapping[str, str]:
    """Give the headers of an answer of this media type; one that a route has set itself stays."""
    is_page = content_type.partition(";")[0].strip().lower() == "text/html"
    return _EVERYWHERE | {"Content-Security-Policy": _OWN_PARTS if is_page else _NOTHING}
