"""Text of LLVM functions over vectors of lanes: the assembler below every fused kernel.

A lane is a path. Values are vectors of `lanes` numbers, so that SIMD does not depend on a
compiler's guess: automatic vectorisation fails silently and costs a factor of 8 to 20. Every
operation is IEEE and fused multiply-adds are written out, so a lane's bits do not depend on the
width of the machine's registers.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

_LLVM = {"f64": "double", "f32": "float", "ptr": "ptr"}
_SIZE = {"f64": 8, "f32": 4, "i64": 8, "i32": 4, "i16": 2, "i8": 1, "ptr": 8}


@dataclass(frozen=True)
class Val:
    """An SSA value or a constant: its text, element kind (f64, i32, i1, ...), and lanes."""

    text: str
    kind: str
    lanes: int = 1

    @property
    def type(self) -> str:
        """The LLVM type."""
        return llvm_type(self.kind, self.lanes)


@dataclass(frozen=True)
class Var:
    """A mutable variable: memory that LLVM turns into registers."""

    code: Code
    pointer: str
    kind: str
    lanes: int

    def get(self) -> Val:
        """Its value now."""
        return self.code.emit(self.kind, self.lanes, f"load {self._type}, ptr {self.pointer}")

    def set(self, value: Val) -> None:
        """Overwrite it."""
        assert (value.kind, value.lanes) == (self.kind, self.lanes), (value, self)
        self.code.line(f"store {value.type} {value.text}, ptr {self.pointer}")

    @property
    def _type(self) -> str:
        return llvm_type(self.kind, self.lanes)


def llvm_type(kind: str, lanes: int = 1) -> str:
    """LLVM's name of `lanes` elements of `kind`."""
    name = _LLVM.get(kind, kind)
    return name if lanes == 1 else f"<{lanes} x {name}>"


class Code:
    """One function under construction. Arguments are `ptr` values named in `args`."""

    def __init__(self, name: str, args: Sequence[str], lanes: int, linkage: str = "") -> None:
        self.name, self.lanes, self.linkage = name, lanes, linkage
        self.args = [Val(f"%{a}", "ptr") for a in args]
        self.lines: list[str] = []
        self.entry: list[str] = []
        self.declared: set[str] = set()
        self.constants: list[str] = []
        self._count = 0
        self._heap = 0

    # -- text ---------------------------------------------------------------------------------
    def line(self, text: str) -> None:
        """Append one instruction."""
        self.lines.append("  " + text)

    def emit(self, kind: str, lanes: int, text: str) -> Val:
        """Append one instruction with a result."""
        self._count += 1
        out = Val(f"%v{self._count}", kind, lanes)
        self.line(f"{out.text} = {text}")
        return out

    def source(self) -> str:
        """The finished function; `declarations` must be put beside it."""
        head = f"define {self.linkage} void" if self.linkage else "define void"
        params = ", ".join(f"ptr {a.text}" for a in self.args)
        begin, end = self._room()
        lines = [*begin, *self.entry, "  br label %body0", "body0:", *self.lines, *end]
        body = "\n".join([*lines, "  ret void"])
        note = " noinline" if self.linkage == "internal" else ""
        # Registers that are spilled lie across two cache lines unless the stack is aligned for
        # them, which LLVM does only if asked: up to 30 %, by the chance of where the stack begins.
        note += ' "frame-pointer"="all" "stackrealign"' if self.lanes > 1 else ""
        return f"{head} @{self.name}({params}){note} {{\nentry:\n{body}\n}}\n"

    def _room(self) -> tuple[list[str], list[str]]:
        """What asks for the memory of `heap` at the start, and gives it back at the end."""
        if not self._heap:
            return [], []
        self.declared |= {"declare noalias ptr @malloc(i64)", "declare void @free(ptr)"}
        begin = [
            f"  %room = call ptr @malloc(i64 {self._heap + 64})",
            "  %room.number = ptrtoint ptr %room to i64",
            "  %room.above = add i64 %room.number, 63",
            "  %room.aligned = and i64 %room.above, -64",
            "  %heap = inttoptr i64 %room.aligned to ptr",
        ]
        return begin, ["  call void @free(ptr %room)"]

    # -- layout -------------------------------------------------------------------------------
    def strided(self, place: Val) -> Val:
        """Where element `place` lies, from the first one on, when lanes lie side by side."""
        if place.text.isdigit():
            return self.i64(int(place.text) * self.lanes)
        return self.mul(place, self.like(self.lanes, place))

    def block_start(self, block: Val, rows: Val) -> Val:
        """Where this block's part of an array of `rows` rows begins."""
        return self.mul(block, self.strided(rows))

    def increase(self, pointer: Val, index: Val, by: Val) -> None:
        """``pointer[index] += by`` for a whole number that this thread owns."""
        self.store(self.add(self.load(pointer, by.kind, index), by), pointer, index)

    # -- constants ----------------------------------------------------------------------------
    def const(self, value: float, kind: str, lanes: int | None = None) -> Val:
        """A constant, the same in every lane."""
        lanes = self.lanes if lanes is None else lanes
        text = _literal(value, kind)
        if lanes > 1:
            element = f"{llvm_type(kind)} {text}"
            text = "<" + ", ".join([element] * lanes) + ">"
        return Val(text, kind, lanes)

    def like(self, value: float, model: Val) -> Val:
        """A constant of the kind and width of `model`."""
        return self.const(value, model.kind, model.lanes)

    def i64(self, value: int) -> Val:
        """A scalar index constant."""
        return Val(str(value), "i64")

    def i32(self, value: int) -> Val:
        """A scalar 32-bit constant."""
        return Val(str(value), "i32")

    # -- arithmetic ---------------------------------------------------------------------------
    def binary(self, op: str, a: Val, b: Val) -> Val:
        """An instruction with two operands of one type, and that result."""
        assert a.type == b.type, (op, a, b)
        return self.emit(a.kind, a.lanes, f"{op} {a.type} {a.text}, {b.text}")

    def call(self, name: str, *args: Val, suffix: bool = True) -> Val:
        """An LLVM intrinsic whose result has the type of its first argument."""
        a = args[0]
        full = f"llvm.{name}.v{a.lanes}{a.kind}" if a.lanes > 1 else f"llvm.{name}.{a.kind}"
        self.declared.add(f"declare {a.type} @{full}({', '.join(x.type for x in args)})")
        inner = ", ".join(f"{x.type} {x.text}" for x in args)
        return self.emit(a.kind, a.lanes, f"call {a.type} @{full}({inner})")

    def add(self, a: Val, b: Val) -> Val:
        """a + b, reals or integers."""
        return self.binary("fadd" if a.kind[0] == "f" else "add", a, b)

    def sub(self, a: Val, b: Val) -> Val:
        """a - b."""
        return self.binary("fsub" if a.kind[0] == "f" else "sub", a, b)

    def mul(self, a: Val, b: Val) -> Val:
        """a * b."""
        return self.binary("fmul" if a.kind[0] == "f" else "mul", a, b)

    def div(self, a: Val, b: Val) -> Val:
        """a / b of reals."""
        return self.binary("fdiv", a, b)

    def neg(self, a: Val) -> Val:
        """-a of reals."""
        return self.emit(a.kind, a.lanes, f"fneg {a.type} {a.text}")

    def fma(self, a: Val, b: Val, c: Val) -> Val:
        """a * b + c with one rounding."""
        return self.call("fma", a, b, c)

    def horner(self, x: Val, coefficients: Sequence[float]) -> Val:
        """The polynomial with these coefficients, highest power first.

        Long ones by Estrin's scheme: neighbours are joined at once, in a tree, since the time
        of a kernel is mostly the length of its longest chain of operations.
        """
        terms = [self.like(v, x) for v in reversed(coefficients)]
        power = x
        while len(terms) > 1:
            pairs = [self.fma(terms[k + 1], power, terms[k]) for k in range(0, len(terms) - 1, 2)]
            terms = pairs + terms[len(terms) - len(terms) % 2 :]
            if len(terms) > 1:
                power = self.mul(power, power)
        return terms[0]

    def compare(self, how: str, a: Val, b: Val) -> Val:
        """A mask: `how` is LLVM's predicate (olt, une, eq, ult, ...)."""
        op = "fcmp" if a.kind[0] == "f" else "icmp"
        return self.emit("i1", a.lanes, f"{op} {how} {a.type} {a.text}, {b.text}")

    def select(self, mask: Val, yes: Val, no: Val) -> Val:
        """`yes` where `mask`, else `no`."""
        assert yes.type == no.type, (yes, no)
        return self.emit(
            yes.kind,
            yes.lanes,
            f"select {mask.type} {mask.text}, {yes.type} {yes.text}, {no.type} {no.text}",
        )

    def shift(self, how: str, a: Val, count: int) -> Val:
        """shl, lshr or ashr by a constant."""
        return self.binary(how, a, self.like(count, a))

    def cast(self, op: str, a: Val, kind: str) -> Val:
        """A conversion instruction (bitcast, zext, trunc, fpext, uitofp, ...)."""
        to = llvm_type(kind, a.lanes)
        return self.emit(kind, a.lanes, f"{op} {a.type} {a.text} to {to}")

    def real(self, a: Val, kind: str) -> Val:
        """A real value as `kind`, rounded if need be."""
        if a.kind == kind:
            return a
        return self.cast("fpext" if kind == "f64" else "fptrunc", a, kind)

    # -- lanes --------------------------------------------------------------------------------
    def splat(self, a: Val) -> Val:
        """A scalar in every lane."""
        if self.lanes == 1:
            return a
        v = llvm_type(a.kind, self.lanes)
        one = self.emit(a.kind, self.lanes, f"insertelement {v} poison, {a.type} {a.text}, i64 0")
        zeros = f"<{self.lanes} x i32> zeroinitializer"
        return self.emit(a.kind, self.lanes, f"shufflevector {v} {one.text}, {v} poison, {zeros}")

    def extract(self, a: Val, lane: int | Val) -> Val:
        """One lane as a scalar."""
        if a.lanes == 1:
            return a
        where = lane.text if isinstance(lane, Val) else str(lane)
        return self.emit(a.kind, 1, f"extractelement {a.type} {a.text}, i64 {where}")

    def lane_numbers(self) -> Val:
        """0, 1, 2, ... as i64."""
        if self.lanes == 1:
            return self.i64(0)
        inner = ", ".join(f"i64 {k}" for k in range(self.lanes))
        return Val(f"<{inner}>", "i64", self.lanes)

    def any(self, mask: Val) -> Val:
        """Whether any lane of a mask is set: scalar i1."""
        if mask.lanes == 1:
            return mask
        name = f"llvm.vector.reduce.or.v{mask.lanes}i1"
        self.declared.add(f"declare i1 @{name}({mask.type})")
        return self.emit("i1", 1, f"call i1 @{name}({mask.type} {mask.text})")

    def shuffle(self, a: Val, b: Val, order: Sequence[int]) -> Val:
        """Lanes of a (0 ...) and b (lanes ...) in the given order."""
        mask = ", ".join(f"i32 {k}" for k in order)
        return self.emit(
            a.kind,
            len(order),
            f"shufflevector {a.type} {a.text}, {b.type} {b.text}, <{len(order)} x i32> <{mask}>",
        )

    # -- memory -------------------------------------------------------------------------------
    def at(self, pointer: Val, kind: str, index: Val) -> Val:
        """Address of element `index` (scalar, or one per lane) of an array of `kind`."""
        return self.emit(
            "ptr",
            index.lanes,
            f"getelementptr {llvm_type(kind)}, ptr {pointer.text}, {index.type} {index.text}",
        )

    def load(self, pointer: Val, kind: str, index: Val | None = None, lanes: int = 1) -> Val:
        """`lanes` consecutive elements from element `index` on."""
        p = pointer if index is None else self.at(pointer, kind, index)
        t = llvm_type(kind, lanes)
        return self.emit(kind, lanes, f"load {t}, ptr {p.text}, align {_SIZE[kind]}")

    def store(self, value: Val, pointer: Val, index: Val | None = None) -> None:
        """Write `value` at element `index`."""
        p = pointer if index is None else self.at(pointer, value.kind, index)
        self.line(f"store {value.type} {value.text}, ptr {p.text}, align {_SIZE[value.kind]}")

    def gather(self, pointer: Val, kind: str, index: Val) -> Val:
        """One element per lane."""
        if index.lanes == 1:
            return self.load(pointer, kind, index)
        addresses = self.at(pointer, kind, index)
        n, t = index.lanes, llvm_type(kind, index.lanes)
        name = f"llvm.masked.gather.v{n}{kind}.v{n}p0"
        mask = self.const(1, "i1", n)
        self.declared.add(f"declare {t} @{name}({addresses.type}, i32, {mask.type}, {t})")
        return self.emit(
            kind,
            n,
            f"call {t} @{name}({addresses.type} {addresses.text}, i32 {_SIZE[kind]}, "
            f"{mask.type} {mask.text}, {t} poison)",
        )

    def scatter(self, value: Val, pointer: Val, index: Val) -> None:
        """Write one element per lane."""
        if index.lanes == 1:
            self.store(value, pointer, index)
            return
        addresses = self.at(pointer, value.kind, index)
        n = index.lanes
        name = f"llvm.masked.scatter.v{n}{value.kind}.v{n}p0"
        mask = self.const(1, "i1", n)
        self.declared.add(f"declare void @{name}({value.type}, {addresses.type}, i32, {mask.type})")
        self.line(
            f"call void @{name}({value.type} {value.text}, {addresses.type} {addresses.text}, "
            f"i32 {_SIZE[value.kind]}, {mask.type} {mask.text})"
        )

    def var(self, kind: str, lanes: int | None = None, value: Val | None = None) -> Var:
        """A new variable, set to `value` here."""
        lanes = self.lanes if lanes is None else lanes
        self._count += 1
        pointer = f"%a{self._count}"
        self.entry.append(f"  {pointer} = alloca {llvm_type(kind, lanes)}")
        out = Var(self, pointer, kind, lanes)
        if value is not None:
            out.set(value)
        return out

    def array(self, kind: str, size: int) -> Val:
        """Room for `size` scalars on the stack."""
        self._count += 1
        name = f"%a{self._count}"
        self.entry.append(f"  {name} = alloca [{size} x {llvm_type(kind)}], align 64")
        return Val(name, "ptr")

    def heap(self, kind: str, size: int) -> Val:
        """Room for `size` scalars, for as long as the function runs."""
        self._count += 1
        name = f"%a{self._count}"
        self.entry.append(f"  {name} = getelementptr i8, ptr %heap, i64 {self._heap}")
        self._heap += -(-size * _SIZE[kind] // 64) * 64
        return Val(name, "ptr")

    @property
    def heap_bytes(self) -> int:
        """Bytes that `heap` has given away."""
        return self._heap

    def constant_bytes(self, data: bytes) -> Val:
        """Address of these bytes, which are part of the program."""
        name = f"@{self.name}.data{len(self.constants)}"
        text = "\\" + data.hex("\\")
        self.constants.append(
            f'{name} = private unnamed_addr constant [{len(data)} x i8] c"{text}", align 64'
        )
        return Val(name, "ptr")

    def invoke(self, name: str, *args: Val) -> None:
        """Call a function of this module."""
        self.line(f"call void @{name}({', '.join(f'ptr {a.text}' for a in args)})")

    # -- control ------------------------------------------------------------------------------
    @contextmanager
    def loop(self, count: Val, start: Val | None = None) -> Iterator[Val]:
        """``for i in range(start, count)``: yields i, a scalar i64."""
        self._count += 1
        tag = f"loop{self._count}"
        counter = self.var("i64", 1, start or self.i64(0))
        self._branch_to(f"{tag}.head")
        i = counter.get()
        inside = self.compare("slt", i, count)
        self.line(f"br i1 {inside.text}, label %{tag}.body, label %{tag}.end")
        self.label(f"{tag}.body")
        yield i
        counter.set(self.add(i, self.i64(1)))
        self.line(f"br label %{tag}.head")
        self.label(f"{tag}.end")

    @contextmanager
    def repeat(self) -> Iterator[str]:
        """An endless loop; yields the label to `leave` for."""
        self._count += 1
        tag = f"rep{self._count}"
        self._branch_to(f"{tag}.head")
        yield f"{tag}.end"
        self.line(f"br label %{tag}.head")
        self.label(f"{tag}.end")

    def leave_if(self, condition: Val, label: str) -> None:
        """Jump to `label` when the scalar mask `condition` is set."""
        self._count += 1
        on = f"on{self._count}"
        self.line(f"br i1 {condition.text}, label %{label}, label %{on}")
        self.label(on)

    @contextmanager
    def when(self, condition: Val) -> Iterator[None]:
        """``if condition:`` for a scalar mask."""
        self._count += 1
        tag = f"if{self._count}"
        self.line(f"br i1 {condition.text}, label %{tag}.then, label %{tag}.end")
        self.label(f"{tag}.then")
        yield
        self._branch_to(f"{tag}.end")

    def label(self, name: str) -> None:
        """Start a block."""
        self.lines.append(f"{name}:")

    def _branch_to(self, name: str) -> None:
        self.line(f"br label %{name}")
        self.label(name)


def module(functions: Sequence[Code]) -> str:
    """LLVM text of these functions with the declarations that they need."""
    sources = [f.source() for f in functions]
    declared = sorted(set().union(*(f.declared for f in functions)))
    constants = [line for f in functions for line in f.constants]
    return "\n".join([*declared, *constants, *sources])


def room_of(source: str) -> int:
    """Bytes that each thread of a module needs while it runs."""
    return sum(int(n) for n in re.findall(r"(?:call ptr @malloc\(i64|; room of) (\d+)", source))


def _literal(value: float, kind: str) -> str:
    if kind == "i1":
        return "true" if value else "false"
    if kind[0] == "i":
        return str(int(value))
    number = float(value)
    if kind == "f32" and number == number and abs(number) != float("inf"):
        try:
            number = struct.unpack("<f", struct.pack("<f", number))[0]
        except OverflowError:
            number = float("inf") if number > 0 else -float("inf")
    return f"0x{struct.unpack('<Q', struct.pack('<d', number))[0]:016X}"
