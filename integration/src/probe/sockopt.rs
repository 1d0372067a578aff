//! Socket options that neither std, nix nor socket2 sets. See ip(7) and ipv6(7).

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use socket2::{Domain, SockRef};

/// Sets the don't-fragment bit on everything the socket sends (IPv6 has none, and is never fragmented on the way), and makes the kernel refuse (EMSGSIZE) what it
/// already knows to be too long for the path.
pub(super) fn dont_fragment(socket: &impl AsFd) -> io::Result<()> {
    if is_ipv4(socket)? {
        set(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO)
    } else {
        set(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DO)
    }
}

/// Reports every ICMP error on the socket. By default the kernel keeps those to itself that might pass, and
/// "network unreachable" is one.
pub(super) fn report_icmp_errors(socket: &impl AsFd) -> io::Result<()> {
    if is_ipv4(socket)? {
        set(socket, libc::IPPROTO_IP, libc::IP_RECVERR, 1)
    } else {
        set(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVERR, 1)
    }
}

/// Lets what the socket sends pass so many hops.
pub(super) fn hops(socket: &impl AsFd, hops: u8) -> io::Result<()> {
    if is_ipv4(socket)? {
        set(socket, libc::IPPROTO_IP, libc::IP_TTL, hops.into())
    } else {
        set(socket, libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, hops.into())
    }
}

/// Room for what comes while a busy machine gives the reader no time, so that it is not taken for lost on the way. Where
/// the kernel does not give so much, it stays as it is.
pub(super) fn patient(socket: &impl AsFd) {
    let _ = set(socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 8 << 20);
}

fn is_ipv4(socket: &impl AsFd) -> io::Result<bool> {
    Ok(SockRef::from(socket).domain()? == Domain::IPV4)
}

#[expect(unsafe_code, reason = "no wrapper exists for these options")]
fn set(socket: &impl AsFd, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let size = libc::socklen_t::try_from(size_of_val(&value)).map_err(io::Error::other)?;
    let socket = socket.as_fd().as_raw_fd();
    // SAFETY: the descriptor is borrowed for the call, and the option's value is a live int of the size passed.
    let set = unsafe { libc::setsockopt(socket, level, option, (&raw const value).cast(), size) };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
