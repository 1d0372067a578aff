//! Kernel settings under /proc/sys.

use std::fs;
use std::io::{self, ErrorKind};

use nix::errno::Errno;

/// Device names have dots and no slashes, so a path says what the dotted form of a setting cannot.
fn accept_ra(device: &str) -> String {
    format!("/proc/sys/net/ipv6/conf/{device}/accept_ra")
}

/// Whether a device takes router advertisements; `None` where there is no IPv6.
pub fn accepts_ra(device: &str) -> Option<bool> {
    Some(fs::read_to_string(accept_ra(device)).ok()?.trim() != "0")
}

/// Lets a device take no router advertisements. Done where there is no IPv6.
pub fn ignore_ra(device: &str) -> io::Result<()> {
    match fs::write(accept_ra(device), "0") {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

/// What an operator can do about a setting that cannot be written.
pub fn remedy(error: &io::Error) -> Option<&'static str> {
    let refused = [Errno::EROFS, Errno::EACCES, Errno::EPERM];
    let errno = error.raw_os_error().map(Errno::from_raw)?;
    refused.contains(&errno).then_some(
        "/proc/sys is read-only in an unprivileged container: set net.ipv6.conf.default.accept_ra = 0 on the host, \
         or run the daemon privileged",
    )
}
