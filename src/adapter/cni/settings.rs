//! Settings under /proc/sys of the namespace that this thread is in.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use super::io;
use crate::cni::CniError;

/// Turns forwarding on for a family, unless it is.
///
/// # Errors
/// Code 5: it is off and cannot be turned on.
pub fn forward(ipv4: bool) -> Result<(), CniError> {
    let path = if ipv4 { "/proc/sys/net/ipv4/ip_forward" } else { "/proc/sys/net/ipv6/conf/all/forwarding" };
    if fs::read_to_string(path).is_ok_and(|value| value.trim() == "1") {
        return Ok(());
    }
    fs::write(path, "1").map_err(|error| io("cannot turn forwarding on in", Path::new(path), &error))
}

/// Sets one of a device's settings, such as `ipv6` `accept_dad`. Best effort: a kernel without IPv6 has no such file.
pub fn of_device(family: &str, device: &str, setting: &str, value: &str) {
    let _ = fs::write(format!("/proc/sys/net/{family}/conf/{device}/{setting}"), value);
}

/// Lets a device have IPv6 addresses.
///
/// # Errors
/// Code 5: they are off and cannot be turned on.
pub fn allow_ipv6(device: &str) -> Result<(), CniError> {
    let path = format!("/proc/sys/net/ipv6/conf/{device}/disable_ipv6");
    match fs::read_to_string(&path) {
        Ok(value) if value.trim() == "0" => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        _ => fs::write(&path, "0").map_err(|error| io("cannot allow IPv6 in", Path::new(&path), &error)),
    }
}
