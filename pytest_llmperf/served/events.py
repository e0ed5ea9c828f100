"""Server-sent events, parsed as their bytes arrive. Pure; bounded in memory."""

from __future__ import annotations

#: Bytes of the longest line, and of the longest event. The largest real one is a prompt's token ids.
LONGEST = 2**20


class EventError(ValueError):
    """What arrived is no stream of events; one line says why."""


class Events:
    """One stream's parser: bytes in, the data of every event that is complete out.

    By the WHATWG's specification: a line ends with LF, CR or both, an event with an empty line; the lines of an
    event's data are joined by LF; comments and other fields are dropped. llama.cpp's server may send its errors in a
    field of that name, which counts as data.
    """

    __slots__ = ("_data", "_size", "_tail")

    def __init__(self) -> None:
        self._tail = bytearray()
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of the events that end in this chunk.

        Raises:
            EventError: a line or an event is longer than `LONGEST`.
        """
        if b"\n" not in chunk and b"\r" not in chunk:
            self._keep(chunk)
            return []
        lines = bytes(self._tail + chunk).splitlines(keepends=True)
        self._tail.clear()
        if not lines[-1].endswith(b"\n"):  # unfinished, or a CR whose LF is still to come
            self._keep(lines.pop())
        found = []
        for line in lines:
            line = line.rstrip(b"\r\n")
            if not line:
                if self._data:
                    found.append(b"\n".join(self._data))
                    self._data, self._size = [], 0
                continue
            self._size += len(line)
            if self._size > LONGEST:
                raise EventError(f"an event is longer than {LONGEST} bytes")
            name, _, value = line.partition(b":")
            if name == b"data" or name == b"error":
                self._data.append(value.removeprefix(b" "))
        return found

    def _keep(self, unfinished: bytes) -> None:
        self._tail += unfinished
        if len(self._tail) > LONGEST:
            raise EventError(f"a line is longer than {LONGEST} bytes")
