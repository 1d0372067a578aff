//! Kernel settings under /proc/sys.

use std::fs;
use std::io::{self, ErrorKind};

use nix::errno::Errno;

use crate::plan::HostFacts;

/// Device names have dots and no slashes, so a path says what the dotted form of a setting cannot.
fn accept_ra(device: &str) -> String {
    format!("/proc/sys/net/ipv6/conf/{device}/accept_ra")
}

/// Whether a device takes router advertisements; `None` where there is no IPv6.
pub fn accepts_ra(device: &str) -> Option<bool> {
    Some(fs::read_to_string(accept_ra(device)).ok()?.trim() != "0")
}

/// Settings that decide whether forwarded packets pass; `devices` are those that pods' packets come by.
pub fn host<'a>(devices: impl Iterator<Item = &'a str>) -> HostFacts {
    let strict = |device: &str| number(&format!("net/ipv4/conf/{device}/rp_filter"));
    // The kernel takes the greater of both.
    let all = strict("all").unwrap_or_default();
    HostFacts {
        forward_v4: number("net/ipv4/ip_forward").map(|value| value != 0),
        forward_v6: number("net/ipv6/conf/all/forwarding").map(|value| value != 0),
        strict_rp_filter: devices.into_iter().any(|device| strict(device).unwrap_or_default().max(all) == 1),
    }
}

/// Whether packets that cross a bridge pass iptables: without the module, Services are not reached from pods of the
/// same node.
pub fn has_bridge_netfilter() -> bool {
    number("net/bridge/bridge-nf-call-iptables").is_some()
}

fn number(setting: &str) -> Option<u32> {
    fs::read_to_string(format!("/proc/sys/{setting}")).ok()?.trim().parse().ok()
}

/// What `uname -r` says.
pub fn kernel_release() -> Option<String> {
    fs::read_to_string("/proc/sys/kernel/osrelease").ok().map(|text| text.trim().to_owned())
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
