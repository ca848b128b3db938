"""Formulas compiled into one loop over the rows of a table: the only file that imports llvmlite.

In: a formula in plain Python. It is called once, with names in place of numbers, and so tells what is to be computed.
Out: machine code that computes it for every row, eight rows at a time. NumPy begins each operation anew, which for a
dozen rows takes longer than the operation; a loop begins once, and keeps in registers what NumPy puts into arrays.

LLVM needs no compiler on the machine, keeps nothing on its disk, and takes about a tenth of a second. Operations are
those of IEEE 754 in single precision, neither reordered nor contracted: the same numbers give the same results to the
last bit, whatever the processor.
"""

import struct
from collections.abc import Callable, Sequence
from ctypes import CFUNCTYPE, addressof, c_float, c_int64, c_void_p
from math import factorial
from types import SimpleNamespace
from typing import Any, Final

import llvmlite.binding as llvm

_SINGLE, _DOUBLE = struct.Struct(">f"), struct.Struct(">d")
LANES: Final = 8  # rows that are computed at once; fewer are computed one by one
_FUNCTION: Final = "of_every_row"
_LOG2_E: Final = 1.4426950408889634
_LN2_HIGH: Final = 0.693359375  # of few bits, so that small multiples of it are exact; and the rest
_LN2_LOW: Final = -2.12194440054690583e-4
_ROUNDER: Final = 1.5 * 2.0**23  # what is added to it is rounded to an integer, which its lowest bits then are
_EXPONENT_AT: Final = 23  # bits of a number below its exponent
_EXP_TERMS: Final = 7  # leaves an error of 5e-9
_FAR: Final = 80.0  # from 0: a logistic function is 0 or 1 there, in single precision


class _Value:
    """A number to come, of `kind` float, i32 or i1. What is done with it becomes an instruction."""

    __slots__ = ("code", "kind", "name")

    def __init__(self, code: list[str], kind: str, name: str) -> None:
        self.code, self.kind, self.name = code, kind, name

    def then(self, instruction: str, kind: str = "float") -> "_Value":
        """The result of an instruction."""
        value = _Value(self.code, kind, f"%v{len(self.code)}")
        self.code.append(f"{value.name} = {instruction}")
        return value

    def as_bits(self) -> "_Value":
        return self.then(f"bitcast float {self.name} to i32", "i32")

    def as_float(self) -> "_Value":
        return self.then(f"bitcast i32 {self.name} to float")

    def __add__(self, other: "_Value | float") -> "_Value":
        return self.then(f"fadd float {self.name}, {_text(other)}")

    def __sub__(self, other: "_Value | float") -> "_Value":
        return self.then(f"fsub float {self.name}, {_text(other)}")

    def __mul__(self, other: "_Value | float") -> "_Value":
        return self.then(f"fmul float {self.name}, {_text(other)}")

    def __truediv__(self, other: "_Value | float") -> "_Value":
        return self.then(f"fdiv float {self.name}, {_text(other)}")

    def __radd__(self, other: float) -> "_Value":
        return self.then(f"fadd float {_text(other)}, {self.name}")

    def __rsub__(self, other: float) -> "_Value":
        return self.then(f"fsub float {_text(other)}, {self.name}")

    def __rmul__(self, other: float) -> "_Value":
        return self.then(f"fmul float {_text(other)}, {self.name}")

    def __rtruediv__(self, other: float) -> "_Value":
        return self.then(f"fdiv float {_text(other)}, {self.name}")

    def __lt__(self, other: "_Value | float") -> "_Value":
        return self.then(f"fcmp olt float {self.name}, {_text(other)}", "i1")

    def __le__(self, other: "_Value | float") -> "_Value":
        return self.then(f"fcmp ole float {self.name}, {_text(other)}", "i1")

    def __gt__(self, other: "_Value | float") -> "_Value":
        return self.then(f"fcmp ogt float {self.name}, {_text(other)}", "i1")

    def __or__(self, other: "_Value") -> "_Value":
        return self.then(f"or i1 {self.name}, {other.name}", "i1")


def _text(operand: _Value | float) -> str:
    if isinstance(operand, _Value):
        return operand.name
    (single,) = _SINGLE.unpack(_SINGLE.pack(operand))
    return f"0x{_DOUBLE.pack(single).hex()}"  # so LLVM writes what has no exact decimal


def _where(condition: _Value, then: _Value | float, otherwise: _Value | float) -> _Value:
    return condition.then(f"select i1 {condition.name}, float {_text(then)}, float {_text(otherwise)}")


def _maximum(one: _Value, other: _Value | float) -> _Value:
    return _where(one > other, one, other)


def _minimum(one: _Value, other: _Value | float) -> _Value:
    return _where(one < other, one, other)


def _ceil(value: _Value) -> _Value:
    return value.then(f"call float @llvm.ceil.f32(float {value.name})")


def _logistic(value: _Value) -> _Value:
    return 1.0 / (_exp(_minimum(_maximum(0.0 - value, -_FAR), _FAR)) + 1.0)


def _exp(value: _Value) -> _Value:
    """For values within `_FAR` of 0: 2**n by the exponent's bits, the rest by its series. No call, so vectors go on."""
    shifted = _fma(value, _LOG2_E, _ROUNDER)
    n = shifted - _ROUNDER
    rest = _fma(n, -_LN2_LOW, _fma(n, -_LN2_HIGH, value))
    series = rest * (1.0 / factorial(_EXP_TERMS)) + 1.0 / factorial(_EXP_TERMS - 1)
    for power in range(_EXP_TERMS - 2, -1, -1):
        series = _fma(series, rest, 1.0 / factorial(power))
    bits, exponent = series.as_bits(), shifted.as_bits()
    exponent = exponent.then(f"shl i32 {exponent.name}, {_EXPONENT_AT}", "i32")
    return bits.then(f"add i32 {bits.name}, {exponent.name}", "i32").as_float()


def _fma(one: _Value, other: _Value | float, added: _Value | float) -> _Value:
    """one * other + added, rounded once: one instruction, and the same on every processor."""
    operands = ", ".join(f"float {_text(each)}" for each in (one, other, added))
    return one.then(f"call float @llvm.fma.f32({operands})")


FUNCTIONS: Final = SimpleNamespace(maximum=_maximum, minimum=_minimum, ceil=_ceil, logistic=_logistic, where=_where)
"""What a formula may call beside arithmetic, comparisons and |."""


class _Names:
    """What a formula is called with: its attributes are a row's columns and the numbers given for all rows."""

    def __init__(self, columns: Sequence[str], given: Sequence[str]) -> None:
        self._columns = {name: index for index, name in enumerate(columns)}
        self._given = {name: index for index, name in enumerate(given)}
        self._values: dict[str, _Value] = {}
        self.before: list[str] = []  # the loop
        self.code: list[str] = []

    def __getattr__(self, name: str) -> _Value:
        if name not in self._values:
            self._values[name] = self._load(name)
        return self._values[name]

    def _load(self, name: str) -> _Value:
        if (index := self._given.get(name)) is not None:
            self.before += [
                f"%at.{name} = getelementptr float, ptr %given, i64 {index}",
                f"%{name} = load float, ptr %at.{name}",
            ]
            return _Value(self.code, "float", f"%{name}")
        self.before += [
            f"%begin.{name} = mul i64 %stride, {self._columns[name]}",
            f"%column.{name} = getelementptr float, ptr %table, i64 %begin.{name}",
        ]
        self.code += [
            f"%at.{name} = getelementptr float, ptr %column.{name}, i64 %row",
            f"%{name} = load float, ptr %at.{name}",
        ]
        return _Value(self.code, "float", f"%{name}")


class Loop:
    """A compiled formula with some results for each row."""

    def __init__(self, formula: Callable[[Any], tuple[Any, ...]], columns: Sequence[str], given: Sequence[str]) -> None:
        """
        Args:
            formula: gives expressions of attributes of its argument.
            columns: of the table, in order.
            given: numbers that are the same for every row.
        """
        names = _Names(columns, given)
        results = formula(names)
        self._code = compiled(_program(results, names))
        call = CFUNCTYPE(None, c_void_p, c_int64, c_int64, c_void_p, *[c_void_p] * len(results))
        self._call = call(self._code.get_function_address(_FUNCTION))
        self._numbers = struct.Struct(f"{len(given)}f")
        self._given = (c_float * len(given))()
        self._given_at = addressof(self._given)

    def __call__(self, table: int, stride: int, rows: int, given: Sequence[float], results: Sequence[int]) -> None:
        """Computes the results for every row.

        Args:
            table: address of the first column; each is `stride` numbers after the one before.
            given: in order.
            results: addresses that they are written to, one number for each row.
        """
        self._numbers.pack_into(self._given, 0, *given)
        self._call(table, stride, rows, self._given_at, *results)


def compiled(program: str) -> llvm.ExecutionEngine:
    """The machine code of a program in LLVM's language, for this processor; it lives as long as what is returned."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_triple(llvm.get_process_triple()).create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3
    )
    module = llvm.parse_assembly(program)
    module.triple, module.data_layout = target.triple, str(target.target_data)
    tuning = llvm.create_pipeline_tuning_options(speed_level=3)
    tuning.loop_vectorization = True
    builder = llvm.create_pass_builder(target, tuning)
    builder.getModulePassManager().run(module, builder)
    code = llvm.create_mcjit_compiler(module, target)
    code.finalize_object()
    return code


def _program(results: Sequence[Any], names: _Names) -> str:
    places = "".join(f", ptr noalias writeonly %result.{number}" for number in range(len(results)))
    stores = [
        f"%at.result.{number} = getelementptr float, ptr %result.{number}, i64 %row\n"
        f"store float {_text(result)}, ptr %at.result.{number}"
        for number, result in enumerate(results)
    ]
    return f"""
declare float @llvm.ceil.f32(float)
declare float @llvm.fma.f32(float, float, float)
define void @{_FUNCTION}(ptr noalias readonly %table, i64 %stride, i64 %rows, ptr noalias readonly %given{places}) {{
entry:
{chr(10).join(names.before)}
%any = icmp sgt i64 %rows, 0
br i1 %any, label %loop, label %done
loop:
%row = phi i64 [ 0, %entry ], [ %next, %loop ]
{chr(10).join(names.code)}
{chr(10).join(stores)}
%next = add nuw nsw i64 %row, 1
%more = icmp slt i64 %next, %rows
br i1 %more, label %loop, label %done
done:
ret void
}}
"""
