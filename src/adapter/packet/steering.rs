//! Which queue of the tunnel device a packet goes to: a program of ours that the kernel runs (`TUNSETSTEERINGEBPF`,
//! linux/if_tun.h, Linux 4.16).
//!
//! What it answers depends on the packet alone, so a flow stays in its queue, and in order. TCP is spread by addresses
//! and ports. All else by addresses only: a datagram may come in fragments, of which only the first has the ports.
#![expect(unsafe_code, reason = "bpf(2), for which no crate here has words")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// A loaded program; the kernel keeps it while a device uses it.
pub(super) struct Steering(OwnedFd);

impl AsRawFd for Steering {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// `struct bpf_insn` (linux/bpf.h).
#[repr(C)]
#[derive(Clone, Copy)]
struct Insn {
    code: u8,
    /// The destination in the low half, the source in the high one.
    registers: u8,
    offset: i16,
    constant: i32,
}

/// The part of `union bpf_attr` that `BPF_PROG_LOAD` cannot do without.
#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    program: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel: u32,
    flags: u32,
}

/// Knuth's multiplicative hash: the golden ratio of 2^32.
const GOLDEN: i32 = 0x9e37_79b1_u32 as i32;

const TCP: i32 = 6;

/// Where the context must be for packet loads, the hash so far, and the first byte of the packet.
const CONTEXT: u8 = 6;
const HASH: u8 = 7;
const FIRST: u8 = 8;

const fn insn(code: u8, registers: u8, offset: i16, constant: i32) -> Insn {
    Insn { code, registers, offset, constant }
}

/// `r0` becomes the byte, half-word or word at an offset; beyond the packet the program ends and answers 0.
const fn load_byte(at: i32) -> Insn {
    insn(0x30, 0, 0, at)
}
const fn load_half(at: i32) -> Insn {
    insn(0x28, 0, 0, at)
}
const fn load_word(at: i32) -> Insn {
    insn(0x20, 0, 0, at)
}
/// The word at an offset that a register holds.
const fn load_word_at(register: u8) -> Insn {
    insn(0x40, register << 4, 0, 0)
}
const fn copy(to: u8, from: u8) -> Insn {
    insn(0xbf, from << 4 | to, 0, 0)
}
/// 32-bit arithmetic with a constant.
const fn and(register: u8, constant: i32) -> Insn {
    insn(0x54, register, 0, constant)
}
const fn shift_left(register: u8, bits: i32) -> Insn {
    insn(0x64, register, 0, bits)
}
const fn shift_right(register: u8, bits: i32) -> Insn {
    insn(0x74, register, 0, bits)
}
/// `r0` enters the hash: two instructions.
const fn xor_into_hash() -> Insn {
    insn(0xac, HASH, 0, 0)
}
const fn stir() -> Insn {
    insn(0x24, HASH, 0, GOLDEN)
}
/// Jumps over `skip` instructions, if `r0` is (not) the constant, or has bits of it.
const fn if_equal(constant: i32, skip: i16) -> Insn {
    insn(0x15, 0, skip, constant)
}
const fn unless_equal(constant: i32, skip: i16) -> Insn {
    insn(0x55, 0, skip, constant)
}
const fn if_bits(constant: i32, skip: i16) -> Insn {
    insn(0x45, 0, skip, constant)
}
const fn jump(skip: i16) -> Insn {
    insn(0x05, 0, skip, 0)
}
const EXIT: Insn = insn(0x95, 0, 0, 0);

/// [`encap::flow::hash`] for the kernel, so that a queue sends from one port only. The packet begins with its IP header.
const PROGRAM: [Insn; 53] = [
    copy(CONTEXT, 1),
    insn(0xb7, HASH, 0, 0),
    load_byte(0),
    copy(FIRST, 0),
    shift_right(0, 4),
    if_equal(6, 15),
    unless_equal(4, 43),
    // IPv4: the addresses; for whole TCP packets the ports, behind a header of 4 times IHL bytes.
    load_word(12),
    xor_into_hash(),
    stir(),
    load_word(16),
    xor_into_hash(),
    stir(),
    load_byte(9),
    unless_equal(TCP, 35),
    load_half(6),
    if_bits(0x3fff, 33),
    and(FIRST, 0x0f),
    shift_left(FIRST, 2),
    load_word_at(FIRST),
    jump(27),
    // IPv6: the addresses; the ports of TCP without extension headers.
    load_word(8),
    xor_into_hash(),
    stir(),
    load_word(12),
    xor_into_hash(),
    stir(),
    load_word(16),
    xor_into_hash(),
    stir(),
    load_word(20),
    xor_into_hash(),
    stir(),
    load_word(24),
    xor_into_hash(),
    stir(),
    load_word(28),
    xor_into_hash(),
    stir(),
    load_word(32),
    xor_into_hash(),
    stir(),
    load_word(36),
    xor_into_hash(),
    stir(),
    load_byte(6),
    unless_equal(TCP, 3),
    load_word(40),
    // Ports.
    xor_into_hash(),
    stir(),
    // A product's low bits know only the low bits of its factors.
    shift_right(HASH, 16),
    copy(0, HASH),
    EXIT,
];

impl Steering {
    /// Has the kernel check and load the program.
    ///
    /// # Errors
    /// `EPERM` without `CAP_BPF`, `ENOSYS` from a kernel that runs no programs.
    pub(super) fn load() -> io::Result<Self> {
        const BPF_PROG_LOAD: libc::c_int = 5;
        const SOCKET_FILTER: u32 = 1;
        let license = c"Apache-2.0";
        let load = Load {
            kind: SOCKET_FILTER,
            count: PROGRAM.len() as u32,
            program: PROGRAM.as_ptr() as u64,
            license: license.as_ptr() as u64,
            log_level: 0,
            log_size: 0,
            log: 0,
            kernel: 0,
            flags: 0,
        };
        // SAFETY: `load` is laid out as the kernel's structure begins, its size is told, and what it points to lives
        // until the end of the program. The kernel only reads.
        let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const load, size_of::<Load>()) };
        let fd = RawFd::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
        // SAFETY: the kernel has just made this descriptor for us.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }
}

#[cfg(test)]
mod tests;
