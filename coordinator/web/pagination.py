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
"""The largest whole number that a large column of every database takes."""
MAX_INTEGER = 2**31 - 1
"""The largest whole number that a plain column of every database takes."""

Row = TypeVar("Row")
Item = TypeVar("Item")


class Listing(BaseModel, Generic[Item]):
    """One page of a list. `next_cursor` is null on the last one."""

    items: list[Item]
    next_cursor: str | None = Field(default=None, examples=["b3JnXzAwMA"])


class PageRequest:
    """What the caller asked for; `after` is the id of the last row seen, or None for the first page."""

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
        """The rows of this page, ordered by the unique column `key`; sets the header `Link` if there are more."""
        if self.after is not None:
            statement = statement.where(key > self._after(key))
        found = session.scalars(statement.order_by(key).limit(self.limit + 1)).all()
        if len(found) <= self.limit:
            return Page(found, None)
        return self._with_more(found[: self.limit], getattr(found[self.limit - 1], key.key))

    def of(self, found: Sequence[Row], key: Callable[[Row], str]) -> "Page[Row]":
        """This page of rows that are all there, in their order; `key` is unique."""
        keys = [key(row) for row in found]
        if self.after is not None and self.after not in keys:
            raise _not_a_cursor()
        start = 0 if self.after is None else keys.index(self.after) + 1
        end = start + self.limit
        rest = found[start:end]
        return self._with_more(rest, keys[end - 1]) if len(found) > end else Page(rest, None)

    def _with_more(self, rows: Sequence[Row], last: object) -> "Page[Row]":
        following = _encode(last)
        url = self._request.url.include_query_params(cursor=following)
        self._response.headers["Link"] = f'<{url.path}?{url.query}>; rel="next"'
        return Page(rows, following)

    def _after(self, key: InstrumentedAttribute[Any]) -> Any:
        try:
            after = key.type.python_type(self.after)
        except ValueError:
            raise _not_a_cursor() from None
        largest = MAX_NUMBER if isinstance(key.type, BigInteger) else MAX_INTEGER
        if isinstance(after, int) and not 0 <= after <= largest:
            raise _not_a_cursor()
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
        raise _not_a_cursor() from None
    if not key.isprintable():  # PostgreSQL takes no NUL
        raise _not_a_cursor()
    return key


def _not_a_cursor() -> BadRequest:
    return BadRequest("cursor_invalid", "`cursor` is not one that an earlier page gave.")


Paging = Annotated[PageRequest, Depends()]
