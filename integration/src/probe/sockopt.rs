//! Socket options that neither std, nix nor socket2 sets. See ip(7).

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Sets the don't-fragment bit on everything the IPv4 socket sends, and makes the kernel refuse (EMSGSIZE) what it
/// already knows to be too long for the path.
pub(super) fn dont_fragment(socket: &impl AsFd) -> io::Result<()> {
    set(socket, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO)
}

/// Reports every ICMP error on the IPv4 socket. By default the kernel keeps those to itself that might pass, and
/// "network unreachable" is one.
pub(super) fn report_icmp_errors(socket: &impl AsFd) -> io::Result<()> {
    set(socket, libc::IP_RECVERR, 1)
}

#[expect(unsafe_code, reason = "no wrapper exists for these options")]
fn set(socket: &impl AsFd, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let size = libc::socklen_t::try_from(size_of_val(&value)).map_err(io::Error::other)?;
    let socket = socket.as_fd().as_raw_fd();
    // SAFETY: the descriptor is borrowed for the call, and the option's value is a live int of the size passed.
    let set = unsafe { libc::setsockopt(socket, libc::IPPROTO_IP, option, (&raw const value).cast(), size) };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
