//! The tunnel device with offloads: each frame begins with a virtio-net header and may be a super-packet.
//!
//! `IFF_VNET_HDR` and `TUNSETOFFLOAD` (linux/if_tun.h, Linux 2.6.27; UDP super-packets since 6.2). Which offloads a
//! kernel has is found out by asking for them.
#![expect(unsafe_code, reason = "ioctls of the tunnel device, for which tun-tap has no words")]

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use encap::DropReason;
use encap::offload::vnet::VNET_LEN;
use nix::errno::Errno;
use nix::sys::uio::writev;
use nix::unistd::read;

use super::udp::{WakeFd, wait_readable};
use crate::config::offload::{Feature, Features};
use crate::ports::{FrameIo, SendError, Wake};

nix::ioctl_write_int!(set_offload, b'T', 208);
nix::ioctl_write_ptr!(set_header_len, b'T', 216, libc::c_int);
nix::ioctl_write_ptr!(attach, b'T', 202, libc::c_int);

/// Bits of `TUNSETOFFLOAD` (linux/if_tun.h).
mod flag {
    pub(super) const CSUM: libc::c_ulong = 0x01;
    pub(super) const TSO4: libc::c_ulong = 0x02;
    pub(super) const TSO6: libc::c_ulong = 0x04;
    pub(super) const TSO_ECN: libc::c_ulong = 0x08;
    /// The kernel takes both or none.
    pub(super) const USO: libc::c_ulong = 0x20 | 0x40;
}

/// An open device that speaks of super-packets.
#[derive(Debug)]
pub(super) struct Frames {
    file: File,
    offloads: Features,
}

impl Frames {
    /// Creates or attaches to the device, with what is wanted and possible of offloads. When it fails, the device is as
    /// it was.
    pub(super) fn open(name: &str, wanted: Features) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open("/dev/net/tun")?;
        let mut request = Request { name: [0; libc::IFNAMSIZ], flags: 0, rest: [0; 22] };
        let room = request.name.get_mut(..name.len()).filter(|_| name.len() < libc::IFNAMSIZ);
        room.ok_or(Errno::ENAMETOOLONG)?.copy_from_slice(name.as_bytes());
        request.flags = (libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
        let len = VNET_LEN as libc::c_int;
        // SAFETY: `request` is laid out as the kernel's `struct ifreq` is, and outlives the calls, which read it and
        // write the name back; `len` is a number that the kernel reads.
        unsafe {
            attach(file.as_raw_fd(), (&raw const request).cast())?;
            set_header_len(file.as_raw_fd(), &raw const len)?;
        }
        let mut frames = Self { file, offloads: Features::NONE };
        frames.negotiate(wanted)?;
        Ok(frames)
    }

    /// Takes the best that the kernel agrees to.
    fn negotiate(&mut self, wanted: Features) -> io::Result<()> {
        let both = |set: Features, feature| if wanted.has(feature) { set.with(feature) } else { set };
        let tcp = both(both(Features::NONE, Feature::Tso), Feature::Coalesce);
        let all = both(tcp, Feature::Uso);
        for offer in [all, tcp] {
            let mut flags = flag::CSUM;
            if offer.has(Feature::Tso) {
                flags |= flag::TSO4 | flag::TSO6 | flag::TSO_ECN;
            }
            if offer.has(Feature::Uso) {
                flags |= flag::USO;
            }
            // SAFETY: the argument is a number.
            if unsafe { set_offload(self.file.as_raw_fd(), flags) }.is_ok() {
                self.offloads = offer;
                return Ok(());
            }
        }
        Err(Errno::EOPNOTSUPP.into())
    }

    pub(super) fn offloads(&self) -> Features {
        self.offloads
    }
}

/// `struct ifreq` as `TUNSETIFF` reads it: 40 bytes, of which a name and flags matter.
#[repr(C, align(8))]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    rest: [u8; 22],
}

const _: () = assert!(size_of::<Request>() == size_of::<libc::ifreq>());

/// The device as one side of the data path.
#[derive(Debug)]
pub struct FramesIo {
    frames: Arc<Frames>,
    wake: Arc<WakeFd>,
}

impl FramesIo {
    pub(super) fn new(frames: Arc<Frames>, wake: Arc<WakeFd>) -> Self {
        Self { frames, wake }
    }
}

impl FrameIo for FramesIo {
    fn read(&mut self, memory: &mut [u8]) -> io::Result<Option<usize>> {
        match read(self.frames.file.as_fd(), memory) {
            Ok(len) => Ok(Some(len)),
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    fn write(&mut self, parts: &[IoSlice<'_>]) -> Result<(), SendError> {
        loop {
            match writev(self.frames.file.as_fd(), parts) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(Errno::EINVAL) => return Err(SendError::Unsupported),
                Err(errno) => return Err(SendError::Dropped(reason(errno))),
            }
        }
    }

    fn wait(&mut self) -> io::Result<Wake> {
        wait_readable([Some(self.frames.file.as_fd()), None], &self.wake)
    }
}

/// What a write that failed is counted as.
pub(super) fn reason(errno: Errno) -> DropReason {
    match errno {
        Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM => DropReason::QueueFull,
        // The kernel looks at the version nibble and refuses what is neither IPv4 nor IPv6.
        Errno::EINVAL => DropReason::BadPacket,
        _ => DropReason::DeviceFailed,
    }
}
