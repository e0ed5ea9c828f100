"""Names of kernels and operators: without what differs from process to process, and short enough to read. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache

from pytest_llmperf.explain.families import family

#: What PyTorch calls operators that move or compute nothing. Each takes microseconds and says nothing by itself.
_VIEWS = re.compile(
    r"(alias|as_strided|broadcast_to|chunk|contiguous|detach_?|diagonal|empty(_like|_strided)?|expand(_as)?|flatten|"
    r"movedim|narrow|permute|ravel|_?reshape(_alias)?|resize_|resolve_(conj|neg)|result_type|select|set_|slice|"
    r"split(_with_sizes)?|squeeze_?|swapaxes|t|tensor_split|to|transpose_?|unbind|unflatten|unfold|unsqueeze_?|"
    r"_unsafe_view|view(_as)?)$"
)
#: The row that stands for them.
VIEWS = "views and allocations"
#: What waits for the device, or for a value on the host.
_SYNCHRONISING = re.compile(
    r"(aten::)?item$|(cuda|hip)(Stream|Device|Event)Synchronize$|(cuda|hip)Memcpy(WithStream)?$"
)
_GRAPH_LAUNCH = re.compile(r"(cuda|hip)GraphLaunch")
_REGION = re.compile(r"Torch-Compiled Region|CompiledFxGraph|TorchDynamo Cache Lookup")
#: Templates of kernels whose arguments say what they compute.
_GENERIC = re.compile(r"(\w*elementwise_kernel\w*|reduce_kernel|[kK]ernel2?|device_kernel|kentry\w*|\w*kernel_impl)$")
#: Words of a C++ template's arguments that tell no kernel from another.
_COMMON = re.compile(
    r"(at|native|detail|internal|gpu|cuda|hip|c10|std|cutlass|gemm|kernel|device|threadblock|thrust|cub|namespace|const|"
    r"void|bool|int|long|short|char\d?|float|double|[hH]alf|BFloat16|unsigned|signed|true|false|auto|lambda|operator|"
    r"instance|[aA]rray|ReduceOp|\w*OffsetCalculator|LoadWithoutCast|StoreWithoutCast|integer_sequence|tuple|cute|constant|type|"
    r"typename|struct|class|function|memory|policy)$"
)
#: Characters of a short name, at most.
LONGEST = 60


def synchronises(name: str) -> bool:
    """Whether the host waits in it for a value or for the device."""
    return _SYNCHRONISING.match(name) is not None


def of_the_host(name: str) -> bool:
    """Whether a count of it tells something where the device computes: waits, graph launches, compiled regions."""
    return synchronises(name) or bool(_GRAPH_LAUNCH.match(name) or _REGION.search(name))


@cache
def stable(name: str) -> str:
    """The name without what differs between processes of the same code: numbers of regions, hashes, addresses."""
    name = name.strip().strip("#").strip().replace(";", ",")  # which separates the rows of a stored profile
    if name.startswith("Torch-Compiled Region"):
        return "Torch-Compiled Region"
    name = re.sub(r"^Call CompiledFxGraph\b.*", "CompiledFxGraph", name)
    name = re.sub(r"0x[0-9a-fA-F]{4,}", "*", name)
    # A hash: eight or more hexadecimal digits of both kinds. Inductor's are 52 characters of base 32.
    name = re.sub(r"(?<![0-9a-zA-Z])(?=[a-f]*[0-9])(?=[0-9]*[a-f])[0-9a-f]{8,}(?![0-9a-zA-Z])", "*", name)
    name = re.sub(r"(?<![0-9a-zA-Z])c[a-z2-7]{50,51}(?![0-9a-zA-Z])", "*", name)
    # Inductor numbers its kernels in the order of a graph.
    return re.sub(r"^((?:triton|cpp)_\w+?)(?:_\d+)+(?:d(?:\d+d)*e?\w*)?$", r"\1", name)


@cache
def short(name: str) -> str:
    """What a reader calls it: without namespaces, types and parameters; `VIEWS` for what computes nothing."""
    name = stable(name)
    operator = name.removeprefix("aten::")
    if name.startswith("aten::"):
        return VIEWS if _VIEWS.match(operator) else operator
    if name.startswith("_Z"):
        name = "::".join(_mangled(name)) or name
    if name.startswith(("Memcpy", "Memset")) or " " in re.sub(r"<.*|\(.*|^void ", "", name, flags=re.S):
        return _fitting(name)
    outer, arguments = _split(name.removeprefix("void "))
    last = re.split(r"::", outer)[-1] or outer
    if not _GENERIC.match(last):
        return _fitting(last if family(name) in (None, family(last)) else outer)  # the namespace may say whose it is
    words = [word for word in re.findall(r"[A-Za-z_]\w*", arguments) if len(word) > 2 and not _COMMON.match(word)]
    told = next(filter(family, words), max(words, key=len, default=""))
    return _fitting(f"{last}<{told}>" if told else last)


def _split(name: str) -> tuple[str, str]:
    """A C++ function's name without template arguments and parameters, and its template arguments."""
    name = name.replace("(anonymous namespace)::", "")
    outer, arguments, depth = "", "", 0
    for character in name:
        if character == "(" and depth == 0:
            break
        depth -= character == ">" and depth > 0
        if depth:
            arguments += character
        elif character not in "<>":
            outer += character
        depth += character == "<"
    return outer.strip() or name, arguments


def _mangled(name: str) -> Iterator[str]:
    """The identifiers of a nested name as the Itanium ABI mangles it."""
    rest = re.sub(r"^_ZN?K?", "", name)
    while (length := re.match(r"\d+", rest)) is not None:
        end = length.end() + int(length[0])
        yield rest[length.end() : end]
        rest = rest[end:]


def _fitting(name: str) -> str:
    """Its beginning and its end, which for a matrix product has the sizes of the tiles."""
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 23]}...{name[-20:]}"
