"""What the API answers instead of a completion: the status and the error object of OpenAI's schema.

https://platform.openai.com/docs/guides/error-codes and `openai.types.shared.ErrorObject`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RETRY_S = 10
"""After which a client may try again where an engine has failed: it is started anew."""
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """A request that gets no completion.

    Args:
        code: what programs look at, such as `model_not_found`.
        param: the field at fault, as a path: `messages[0].content`.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.code, self.param = _encodable(message), status, code, _encodable(param or "")
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param or None, "code": self.code}}


def _encodable(text: str) -> str:
    """Without what clients can write in JSON and nobody in UTF-8: halves of surrogate pairs."""
    return text.encode(errors="replace").decode()


def bad_request(message: str, *, param: str | None = None, code: str | None = "invalid_value") -> ApiError:
    return ApiError(message, status=400, param=param, code=code)


def bad_picture(message: str, *, param: str | None = None) -> ApiError:
    return bad_request(message, param=param, code="invalid_image")
