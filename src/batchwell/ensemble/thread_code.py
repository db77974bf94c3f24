"""Functions that a GPU runs: one lane each, one thread per lane.

The threads of a GPU stand side by side as the lanes of a CPU's registers do: entry k of a path's
array lies next to entry k of its neighbour's, so that a warp reads whole cache lines.
"""

from __future__ import annotations

from .vector import Code, Val

_SREG = "llvm.nvvm.read.ptx.sreg"
_ALIGN = 64


class ThreadCode(Code):
    """One kernel under construction; its argument array says how many threads there are.

    Attributes
    ----------
    thread, width
        This thread's number, and how many of them work; others have nothing to do.
    """

    def __init__(self, name: str, width_at: int, room_at: int) -> None:
        super().__init__(name, ["args"], 1, "ptx_kernel")
        self.thread, self.width = Val("%thread", "i64"), Val("%width", "i64")
        for part in ("ctaid", "ntid", "tid"):
            self.declared.add(f"declare i32 @{_SREG}.{part}.x()")
            self.entry.append(f"  %{part} = call i32 @{_SREG}.{part}.x()")
        self.entry += [
            "  %thread.first = mul i32 %ctaid, %ntid",
            "  %thread.number = add i32 %thread.first, %tid",
            "  %thread = zext i32 %thread.number to i64",
            f"  %width.at = getelementptr i64, ptr %args, i64 {width_at}",
            "  %width = load i64, ptr %width.at",
            f"  %room.at = getelementptr i64, ptr %args, i64 {room_at}",
            "  %room = load ptr, ptr %room.at",
        ]

    def _room(self) -> tuple[list[str], list[str]]:
        """The launch brings the memory of `heap` along."""
        return ([f"  ; room of {self._heap}"] if self._heap else []), []

    def heap(self, kind: str, size: int) -> Val:
        """Room for `size` scalars of every thread, the threads' side by side."""
        start, bytes_each = self._heap, size * _BYTES[kind]
        self._heap += -(-bytes_each // _ALIGN) * _ALIGN
        self._count += 1
        name = f"%a{self._count}"
        self.entry += [
            f"  {name}.start = mul i64 %width, {start}",
            f"  {name}.own = mul i64 %thread, {_BYTES[kind]}",
            f"  {name}.offset = add i64 {name}.start, {name}.own",
            f"  {name} = getelementptr i8, ptr %room, i64 {name}.offset",
        ]
        return Val(name, "ptr")

    def strided(self, place: Val) -> Val:
        """Where element `place` lies when threads lie side by side."""
        return self.mul(place, self.width)

    def block_start(self, block: Val, rows: Val) -> Val:
        """Where this thread's part of an array of `rows` rows begins."""
        return self.add(self.mul(block, self.strided(rows)), self.thread)

    def increase(self, pointer: Val, index: Val, by: Val) -> None:
        """``pointer[index] += by`` for a whole number that all threads share."""
        spot = self.at(pointer, by.kind, index)
        self.line(f"atomicrmw add ptr {spot.text}, {by.type} {by.text} monotonic")


_BYTES = {"f64": 8, "f32": 4, "i64": 8, "i32": 4}
