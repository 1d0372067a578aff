//! What a device leaves to what is below it, by `SIOCETHTOOL` (linux/ethtool.h).
#![expect(unsafe_code, reason = "an ioctl for which no crate has words")]

use std::ffi::{c_char, c_void};
use std::io;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

const GET_DRIVER: u32 = 0x03;
const GET_TX_CHECKSUM: u32 = 0x16;
const SET_TX_CHECKSUM: u32 = 0x17;

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// `struct ethtool_drvinfo`, of which the second field matters.
#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    rest: [u8; 160],
}

const _: () = assert!(size_of::<DriverInfo>() == 196);

/// Whether a device leaves checksums of what it sends to what is below; `None` when it does not say.
pub fn tx_checksum(device: &str) -> Option<bool> {
    let mut value = Value { command: GET_TX_CHECKSUM, data: 0 };
    ask(device, (&raw mut value).cast()).ok()?;
    Some(value.data != 0)
}

/// Lets it do so, or not. What depends on it, TCP segmentation, goes and comes along (`netdev_fix_features`).
///
/// # Errors
/// The device is not there or has no choice, or CAP_NET_ADMIN is missing.
pub fn set_tx_checksum(device: &str, on: bool) -> io::Result<()> {
    let mut value = Value { command: SET_TX_CHECKSUM, data: on.into() };
    ask(device, (&raw mut value).cast())
}

/// Name of a device's driver, if it tells.
pub fn driver(device: &str) -> Option<String> {
    let mut info = DriverInfo { command: GET_DRIVER, driver: [0; 32], rest: [0; 160] };
    ask(device, (&raw mut info).cast()).ok()?;
    let name = info.driver.split(|byte| *byte == 0).next()?;
    String::from_utf8(name.to_vec()).ok().filter(|name| !name.is_empty())
}

/// Asks about a device. `data` points to a structure that begins with a command and is as long as the command says.
fn ask(device: &str, data: *mut c_void) -> io::Result<()> {
    let name = device.as_bytes();
    if name.len() >= libc::IFNAMSIZ {
        return Err(Errno::ENAMETOOLONG.into());
    }
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: a plain C structure for which all-zero is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name) {
        *to = *from as c_char;
    }
    request.ifr_ifru.ifru_data = data.cast();
    // SAFETY: `request` and what `data` points to live across the call and are as large as the kernel expects for the
    // three commands above.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
