"""Cursor pagination of lists: `limit`, `cursor`, `next_cursor`, and the header `Link: <…>; rel="next"`."""

import base64
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Generic, TypeVar

from fastapi import Depends, Query, Request, Response
from pydantic import BaseModel, Field
from sqlalchemy import BigInteger, Select
from sqlalchemy.orm import InstrumentedAttribute, Session

from coordinator.errors import BadRequest

DEFAULT_LIMIT = 50
MAX_LIMIT = 200
MAX_NUMBER = 2**63 - 1
"""Largest value of a BIGINT column in every database."""
MAX_INTEGER = 2**31 - 1
"""Largest value of an INTEGER column in every database."""

Row = TypeVar("Row")
Item = TypeVar("Item")


class Listing(BaseModel, Generic[Item]):
    """One page of a list. `next_cursor` is null on the last page."""

    items: list[Item]
    next_cursor: str | None = Field(default=None, examples=["b3JnXzAwMA"])


class PageRequest:
    """The requested page. `after` is the id of the last row of the previous page, None for the first page."""

    def __init__(
        self,
        request: Request,
        response: Response,
        limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = DEFAULT_LIMIT,
        cursor: Annotated[str | None, Query(max_length=256)] = None,
    ) -> None:
        self._request, self._response = request, response
        self.limit = limit
        self.after = None if cursor is None else _decode(cursor)

    def rows(self, session: Session, statement: Select[Row], key: InstrumentedAttribute[Any]) -> "Page[Row]":
        """The rows of this page, ordered by the unique column `key`. Sets the header `Link` if there are more."""
        if self.after is not None:
            statement = statement.where(key > self._after(key))
        rows = session.scalars(statement.order_by(key).limit(self.limit + 1)).all()
        if len(rows) <= self.limit:
            return Page(rows, None)
        return self._with_more(rows[: self.limit], getattr(rows[self.limit - 1], key.key))

    def of(self, rows: Sequence[Row], key: Callable[[Row], str]) -> "Page[Row]":
        """This page of `rows`, a complete list in its order; `key` is unique."""
        keys = [key(row) for row in rows]
        if self.after is not None and self.after not in keys:
            raise _cursor_error()
        start = 0 if self.after is None else keys.index(self.after) + 1
        end = start + self.limit
        page = rows[start:end]
        return self._with_more(page, keys[end - 1]) if len(rows) > end else Page(page, None)

    def _with_more(self, rows: Sequence[Row], last: object) -> "Page[Row]":
        cursor = _encode(last)
        url = self._request.url.include_query_params(cursor=cursor)
        self._response.headers["Link"] = f'<{url.path}?{url.query}>; rel="next"'
        return Page(rows, cursor)

    def _after(self, key: InstrumentedAttribute[Any]) -> Any:
        try:
            after = key.type.python_type(self.after)
        except ValueError:
            raise _cursor_error() from None
        largest = MAX_NUMBER if isinstance(key.type, BigInteger) else MAX_INTEGER
        if isinstance(after, int) and not 0 <= after <= largest:
            raise _cursor_error()
        return after


class Page(Generic[Row]):
    """Rows of one page and the cursor of the next."""

    def __init__(self, rows: Sequence[Row], next_cursor: str | None) -> None:
        self.rows, self.next_cursor = rows, next_cursor


def _encode(key: object) -> str:
    return base64.urlsafe_b64encode(str(key).encode()).decode().rstrip("=")


def _decode(cursor: str) -> str:
    try:
        key = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
    except ValueError:
        raise _cursor_error() from None
    if not key.isprintable():  # PostgreSQL takes no NUL
        raise _cursor_error()
    return key


def _cursor_error() -> BadRequest:
    return BadRequest("cursor_invalid", "`cursor` is not the `next_cursor` of a page.")


Paging = Annotated[PageRequest, Depends()]
