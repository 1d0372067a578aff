//! The tunnel device with offloads: each frame begins with a virtio-net header and may be a super-packet.
//!
//! `IFF_VNET_HDR` and `TUNSETOFFLOAD` (linux/if_tun.h, Linux 2.6.27; UDP super-packets since 6.2). Which offloads a
//! kernel has is found out by asking for them.
#![expect(unsafe_code, reason = "ioctls of the tunnel device, for which tun-tap has no words")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use encap::offload::vnet::VNET_LEN;
use nix::errno::Errno;
use tracing::info;

use super::steering::Steering;
use encap::offload::{Feature, Features};

nix::ioctl_write_int!(set_offload, b'T', 208);
nix::ioctl_write_ptr!(set_header_len, b'T', 216, libc::c_int);
nix::ioctl_write_ptr!(attach, b'T', 202, libc::c_int);
// The kernel reads, although the number says that it writes.
nix::ioctl_write_ptr_bad!(steer, nix::request_code_read!(b'T', 224, size_of::<libc::c_int>()), libc::c_int);

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
    /// At least one.
    queues: Vec<File>,
    offloads: Features,
}

impl Frames {
    /// Creates or attaches to the device, with what is wanted and possible of offloads, and up to `queues` queues. When
    /// it fails, the device is as it was.
    pub(super) fn open(name: &str, wanted: Features, queues: usize) -> io::Result<Self> {
        // Without a program of ours the kernel moves a flow to the queue that its answers were written to, and what
        // the old queue holds is overtaken.
        let steering = if queues > 1 { Steering::load().map(Some) } else { Ok(None) };
        let steering = steering.unwrap_or_else(|error| {
            info!(%error, "one queue: the kernel takes no program that spreads flows (that needs CAP_BPF)");
            None
        });
        let Some(steering) = steering else {
            let mut frames = Self { queues: vec![queue(name, 0)?], offloads: Features::NONE };
            frames.negotiate(wanted)?;
            return Ok(frames);
        };
        let mut frames = Self { queues: vec![queue(name, libc::IFF_MULTI_QUEUE)?], offloads: Features::NONE };
        frames.negotiate(wanted)?;
        let fd = steering.as_raw_fd();
        // SAFETY: `fd` is a number that the kernel reads.
        if let Err(errno) = unsafe { steer(frames.file(0).as_raw_fd(), &raw const fd) } {
            info!(%errno, "one queue: the tunnel device takes no program that spreads flows");
            return Ok(frames);
        }
        for _ in 1..queues {
            frames.queues.push(queue(name, libc::IFF_MULTI_QUEUE)?);
        }
        Ok(frames)
    }

    /// The queue of that number; they are counted round.
    pub(super) fn file(&self, queue: usize) -> &File {
        &self.queues[queue % self.queues.len()]
    }

    pub(super) fn queues(&self) -> usize {
        self.queues.len()
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
            if unsafe { set_offload(self.file(0).as_raw_fd(), flags) }.is_ok() {
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

/// Opens one queue of the device.
fn queue(name: &str, flags: libc::c_int) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open("/dev/net/tun")?;
    let mut request = Request { name: [0; libc::IFNAMSIZ], flags: 0, rest: [0; 22] };
    let room = request.name.get_mut(..name.len()).filter(|_| name.len() < libc::IFNAMSIZ);
    room.ok_or(Errno::ENAMETOOLONG)?.copy_from_slice(name.as_bytes());
    request.flags = (libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | flags) as libc::c_short;
    let len = VNET_LEN as libc::c_int;
    // SAFETY: `request` is laid out as the kernel's `struct ifreq` is, and outlives the calls, which read it and
    // write the name back; `len` is a number that the kernel reads.
    unsafe {
        attach(file.as_raw_fd(), (&raw const request).cast())?;
        set_header_len(file.as_raw_fd(), &raw const len)?;
    }
    Ok(file)
}

/// `struct ifreq` as `TUNSETIFF` reads it: 40 bytes, of which a name and flags matter.
#[repr(C, align(8))]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    rest: [u8; 22],
}

const _: () = assert!(size_of::<Request>() == size_of::<libc::ifreq>());
