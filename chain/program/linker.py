"""Links one eBPF object file, as upstream LLVM emits it, into a Solana SBPF v0 shared object.

No linker for this target is in any package index, and the job is small: place .text and .rodata, resolve data addresses and calls
inside the program, and leave a dynamic relocation for each syscall, which the loader resolves by name.

What the loader wants of SBPF v0: ET_DYN, machine 247, flags 0; exactly one .text, whose address equals its file offset; no writable
data; sections in file order. Program memory is mapped at 0x1_0000_0000 plus the address.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

PROGRAM_BASE = 1 << 32
MACHINE_BPF = 247
# Relocations of LLVM's BPF back end: 64-bit address in an `lddw`, 64-bit address in data, call target.
R_BPF_64_64, R_BPF_64_ABS64, R_BPF_64_32 = 1, 2, 10
SYMBOL_SECTION = 3
HEADER_SIZE, PROGRAM_HEADER_SIZE, PROGRAM_HEADERS = 64, 56, 3


class LinkError(Exception):
    """The object uses something that a Solana program cannot have."""


@dataclass(frozen=True)
class Section:
    name: str
    kind: int
    flags: int
    link: int
    info: int
    align: int
    data: bytes


@dataclass(frozen=True)
class Symbol:
    name: str
    kind: int
    section: int
    value: int


@dataclass(frozen=True)
class Relocation:
    section: int
    offset: int
    kind: int
    symbol: Symbol


@dataclass
class Image:
    """What is being put together: code, constants, and where each constant section landed."""

    text_section: int
    text: bytearray
    constants: bytearray = field(default_factory=bytearray)
    constant_base: dict[int, int] = field(default_factory=dict)
    syscalls: list[str] = field(default_factory=list)
    syscall_sites: list[tuple[int, int]] = field(default_factory=list)  # offset in text, index into syscalls

    @property
    def text_address(self) -> int:
        return HEADER_SIZE + PROGRAM_HEADERS * PROGRAM_HEADER_SIZE

    @property
    def constants_address(self) -> int:
        return self.text_address + len(self.text)

    def address_of(self, symbol: Symbol, addend: int) -> int:
        if symbol.section in self.constant_base:
            return PROGRAM_BASE + self.constants_address + self.constant_base[symbol.section] + symbol.value + addend
        if symbol.section == self.text_section:
            return PROGRAM_BASE + self.text_address + symbol.value + addend
        raise LinkError(f"{symbol.name!r}: no such data (writable globals are not possible)")


def link(object_file: bytes) -> bytes:
    """The shared object. Deterministic: equal input, equal bytes. Raises LinkError."""
    sections, symbols, relocations = _parse(object_file)
    image = _place(sections)
    for relocation in relocations:
        _apply(image, relocation)
    entry = next((s.value for s in symbols if s.name == "entrypoint" and s.section == image.text_section), None)
    if entry is None:
        raise LinkError("no function named entrypoint")
    return _write(image, image.text_address + entry)


def _parse(raw: bytes) -> tuple[list[Section], list[Symbol], list[Relocation]]:
    if raw[:6] != b"\x7fELF\x02\x01" or struct.unpack_from("<HH", raw, 16) != (1, MACHINE_BPF):
        raise LinkError("not a little-endian 64-bit eBPF object")
    (table,) = struct.unpack_from("<Q", raw, 40)
    count, names = struct.unpack_from("<HH", raw, 60)
    headers = [struct.unpack_from("<IIQQQQIIQQ", raw, table + 64 * i) for i in range(count)]

    def text_at(section: int, offset: int) -> str:
        start = headers[section][4] + offset
        return raw[start : raw.index(b"\0", start)].decode()

    no_bits = 8
    sections = [
        Section(
            text_at(names, h[0]), h[1], h[2], h[6], h[7], h[8] or 1, b"" if h[1] == no_bits else raw[h[4] : h[4] + h[5]]
        )
        for h in headers
    ]
    symbols = []
    for section in sections:
        if section.kind == 2:
            for offset in range(0, len(section.data), 24):
                name, info, _, index, value, _ = struct.unpack_from("<IBBHQQ", section.data, offset)
                symbols.append(Symbol(text_at(section.link, name), info & 15, index, value))
    relocations = []
    for section in sections:
        if section.kind == 9:
            for at in range(0, len(section.data), 16):
                offset, info = struct.unpack_from("<QQ", section.data, at)
                relocations.append(Relocation(section.info, offset, info & 0xFFFFFFFF, symbols[info >> 32]))
    _refuse_writable(headers, sections)
    return sections, symbols, relocations


def _refuse_writable(headers: list[tuple[int, ...]], sections: list[Section]) -> None:
    allocated, executable = 2, 4
    for header, section in zip(headers, sections, strict=True):
        extra_code = section.flags & executable and section.name != ".text"
        if header[5] and section.flags & allocated and (section.name.startswith((".bss", ".data")) or extra_code):
            raise LinkError(f"section {section.name}: writable data and further code sections are not possible")


def _place(sections: list[Section]) -> Image:
    text = next(i for i, section in enumerate(sections) if section.name == ".text")
    image = Image(text, bytearray(sections[text].data))
    for index, section in enumerate(sections):
        if section.name.startswith(".rodata"):
            image.constants += b"\0" * (-len(image.constants) % max(8, section.align))
            image.constant_base[index] = len(image.constants)
            image.constants += section.data
    image.constants += b"\0" * (-len(image.constants) % 8)
    return image


def _apply(image: Image, relocation: Relocation) -> None:
    in_text = relocation.section == image.text_section
    offset, symbol = relocation.offset, relocation.symbol
    if in_text and relocation.kind == R_BPF_64_64:
        low, high = (struct.unpack_from("<I", image.text, offset + at)[0] for at in (4, 12))
        address = image.address_of(symbol, low | high << 32)
        struct.pack_into("<I", image.text, offset + 4, address & 0xFFFFFFFF)
        struct.pack_into("<I", image.text, offset + 12, address >> 32)
    elif in_text and relocation.kind == R_BPF_64_32:
        _apply_call(image, offset, symbol)
    elif relocation.section in image.constant_base and relocation.kind == R_BPF_64_ABS64:
        at = image.constant_base[relocation.section] + offset
        (addend,) = struct.unpack_from("<Q", image.constants, at)
        struct.pack_into("<Q", image.constants, at, image.address_of(symbol, addend))
    elif in_text or relocation.section in image.constant_base:
        raise LinkError(f"relocation {relocation.kind} of {symbol.name!r} is not supported")


def _apply_call(image: Image, offset: int, symbol: Symbol) -> None:
    image.text[offset + 1] = 0x10  # source register 1: a call by immediate
    if symbol.section != 0:  # a function of this program: pc-relative, in instructions of 8 bytes
        (immediate,) = struct.unpack_from("<i", image.text, offset + 4)
        target = symbol.value // 8 if symbol.kind != SYMBOL_SECTION else immediate + 1 + symbol.value // 8
        struct.pack_into("<i", image.text, offset + 4, target - offset // 8 - 1)
        return
    if not symbol.name.startswith("sol_") and symbol.name != "abort":
        raise LinkError(f"undefined function {symbol.name!r} (a call that the compiler made up?)")
    if symbol.name not in image.syscalls:
        image.syscalls.append(symbol.name)
    struct.pack_into("<i", image.text, offset + 4, -1)
    image.syscall_sites.append((offset, image.syscalls.index(symbol.name) + 1))


def _write(image: Image, entry: int) -> bytes:
    out = bytearray(image.text_address) + image.text + image.constants
    strings, name_at = b"\0", {}
    for name in [*image.syscalls, "entrypoint"]:
        name_at[name] = len(strings)
        strings += name.encode() + b"\0"
    dynamic_symbols = bytes(24) + b"".join(struct.pack("<IBBHQQ", name_at[n], 0x10, 0, 0, 0, 0) for n in image.syscalls)
    dynamic_symbols += struct.pack("<IBBHQQ", name_at["entrypoint"], 0x12, 0, 1, entry, len(image.text))
    sites = b"".join(
        struct.pack("<QQ", image.text_address + at, index << 32 | R_BPF_64_32) for at, index in image.syscall_sites
    )

    def append(data: bytes) -> int:
        out.extend(b"\0" * (-len(out) % 8))
        position = len(out)
        out.extend(data)
        return position

    dynamic_at = append(bytes(16 * 7))
    symbols_at, strings_at, sites_at = append(dynamic_symbols), append(strings), append(sites)
    load_end = sites_at + len(sites)
    # DT_SYMTAB, DT_STRTAB, DT_STRSZ, then DT_REL, DT_RELSZ, DT_RELENT unless that table is empty, which loaders refuse
    entries = [(6, symbols_at), (5, strings_at), (10, len(strings))]
    entries += [(17, sites_at), (18, len(sites)), (19, 16)] if sites else []
    for index, pair in enumerate(entries):
        struct.pack_into("<QQ", out, dynamic_at + 16 * index, *pair)

    headers = _SectionHeaders()
    headers.add(".text", 1, 6, image.text_address, len(image.text))
    headers.add(".rodata", 1, 2, image.constants_address, len(image.constants))
    headers.add(".dynamic", 6, 3, dynamic_at, 16 * 7, link=5, entry_size=16)
    headers.add(".dynsym", 11, 2, symbols_at, len(dynamic_symbols), link=5, info=1, entry_size=24)
    headers.add(".dynstr", 3, 2, strings_at, len(strings), align=1)
    headers.add(".rel.dyn", 9, 2, sites_at, len(sites), link=4, entry_size=16)
    names = headers.names + b".shstrtab\0"
    names_at = append(names)
    headers.add(".shstrtab", 3, 0, names_at, len(names), align=1)
    table_at = append(b"".join(headers.rows))

    read_execute, read = 5, 4
    out[:HEADER_SIZE] = _file_header(entry, table_at, len(headers.rows))
    out[HEADER_SIZE : image.text_address] = b"".join(
        [
            _program_header(1, read_execute, image.text_address, len(image.text) + len(image.constants)),
            _program_header(1, read, dynamic_at, load_end - dynamic_at),
            _program_header(2, read, dynamic_at, 16 * 7),
        ]
    )
    return bytes(out)


class _SectionHeaders:
    def __init__(self) -> None:
        self.names = b"\0"
        self.rows = [bytes(64)]

    def add(
        self,
        name: str,
        kind: int,
        flags: int,
        at: int,
        size: int,
        *,
        link: int = 0,
        info: int = 0,
        align: int = 8,
        entry_size: int = 0,
    ) -> None:
        address = at if flags else 0
        self.rows.append(
            struct.pack("<IIQQQQIIQQ", len(self.names), kind, flags, address, at, size, link, info, align, entry_size)
        )
        self.names += name.encode() + b"\0"


def _file_header(entry: int, section_table: int, sections: int) -> bytes:
    shared_object, elf_version = 3, 1
    numbers = (
        shared_object,
        MACHINE_BPF,
        elf_version,
        entry,
        HEADER_SIZE,
        section_table,
        0,
        HEADER_SIZE,
        PROGRAM_HEADER_SIZE,
    )
    return (
        b"\x7fELF\2\1\1"
        + bytes(9)
        + struct.pack("<HHIQQQIHHHHHH", *numbers, PROGRAM_HEADERS, 64, sections, sections - 1)
    )


def _program_header(kind: int, flags: int, at: int, size: int) -> bytes:
    return struct.pack("<IIQQQQQQ", kind, flags, at, at, at, size, size, 8)
