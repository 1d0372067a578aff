//! The one socket option that neither std, nix nor socket2 sets.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Sets the don't-fragment bit on everything the IPv4 socket sends, and makes the kernel refuse (EMSGSIZE) what it
/// already knows to be too long for the path. See ip(7), IP_MTU_DISCOVER.
#[expect(unsafe_code, reason = "no wrapper exists for IP_MTU_DISCOVER")]
pub(super) fn dont_fragment(socket: &impl AsFd) -> io::Result<()> {
    let mode: libc::c_int = libc::IP_PMTUDISC_DO;
    let size = libc::socklen_t::try_from(size_of_val(&mode)).map_err(io::Error::other)?;
    // SAFETY: the descriptor is borrowed for the call, and the option's value is a live int of the size passed.
    let set = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            (&raw const mode).cast(),
            size,
        )
    };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
