//! The tunnel device: opened with as many offloads as are wanted and the kernel has, or in its plain form, one packet
//! per read and write, through `tun-tap`.
//!
//! `IFF_TUN | IFF_NO_PI`, never persistent: a persisted TUN without a process has no carrier, and a flannel that
//! is rolled back to would make a dead `flannel1` beside it.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use encap::DropReason;
use encap::offload::vnet::VNET_LEN;
use nix::errno::Errno;
use nix::sys::uio::writev;
use nix::unistd::read;
use tun_tap::{Iface, Mode};

use super::frames::Frames;
use super::wake::{WakeFd, wait_readable};
use crate::ports::{FrameIo, SendError, Wake};
use encap::offload::{Feature, Features};

/// An open tunnel device. The kernel removes the device when the last clone is dropped.
#[derive(Debug, Clone)]
pub struct TunDevice {
    form: Form,
    index: u32,
    wanted: Features,
}

/// How a device is to be opened.
#[derive(Debug, Clone, Copy)]
pub struct TunOptions {
    /// Offloads that may be used.
    pub offloads: Features,
    /// Super-packets are written to it whatever the kernel's offloads, so the plain form will not do.
    pub frames: bool,
    /// How many queues it may have.
    pub queues: usize,
}

impl From<Features> for TunOptions {
    fn from(offloads: Features) -> Self {
        Self { offloads, frames: false, queues: 1 }
    }
}

#[derive(Debug, Clone)]
enum Form {
    Plain(Arc<Iface>),
    Frames(Arc<Frames>),
}

impl TunDevice {
    /// Creates the device, or attaches to a persistent one of that name that nobody holds. Offloads that are wanted and
    /// cannot be had are done without: [`TunDevice::offloads`] says which are there.
    pub fn open(name: &str, options: impl Into<TunOptions>) -> Result<Self> {
        let TunOptions { offloads: wanted, frames, queues } = options.into();
        let plain = || Self::plain(name).map(|plain| Form::Plain(Arc::new(plain)));
        let some = wanted.has(Feature::Tso) || wanted.has(Feature::Coalesce);
        let form = if some || frames {
            match Frames::open(name, wanted, queues) {
                Ok(opened) => Form::Frames(Arc::new(opened)),
                Err(error) if frames => return Err(explain(name, error)),
                // The kernel has none: whatever else is wrong, the plain form fails of too.
                Err(_) => plain()?,
            }
        } else {
            plain()?
        };
        let index = nix::net::if_::if_nametoindex(name)
            .with_context(|| format!("{name} vanished while it was being opened"))?;
        Ok(Self { form, index, wanted })
    }

    fn plain(name: &str) -> Result<Iface> {
        let iface = Iface::without_packet_info(name, Mode::Tun).map_err(|error| explain(name, error))?;
        if iface.name() != name {
            bail!("the kernel named the tunnel device {} instead of {name}", iface.name());
        }
        iface.set_non_blocking().with_context(|| format!("cannot make {name} non-blocking"))?;
        Ok(iface)
    }

    /// What was asked for.
    pub fn wanted(&self) -> Features {
        self.wanted
    }

    /// What the device does.
    pub fn offloads(&self) -> Features {
        match &self.form {
            Form::Plain(_) => Features::NONE,
            Form::Frames(frames) => frames.offloads(),
        }
    }

    /// Interface index; a device of the same name and another index is not this one.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// How many queues it has.
    pub fn queues(&self) -> usize {
        match &self.form {
            Form::Plain(_) => 1,
            Form::Frames(frames) => frames.queues(),
        }
    }

    /// A handle for one data-path thread, on the queue of that number; they are counted round.
    pub fn io(&self, queue: usize, wake: &Arc<WakeFd>) -> TunIo {
        TunIo { form: self.form.clone(), queue, wake: wake.clone() }
    }
}

/// Whether this is what reading or writing a device that was deleted comes to.
pub fn is_gone(error: &io::Error) -> bool {
    error.raw_os_error().map(Errno::from_raw) == Some(Errno::EBADFD)
}

fn explain(name: &str, error: io::Error) -> anyhow::Error {
    let remedy = match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOENT | Errno::ENODEV | Errno::ENXIO) => {
            "/dev/net/tun is missing: run `modprobe tun`, and in a container mount the host's /dev/net/tun"
        }
        Some(Errno::EPERM | Errno::EACCES) => {
            "the daemon needs CAP_NET_ADMIN and access to /dev/net/tun: in a container add the capability and the device"
        }
        Some(Errno::EBUSY) => {
            "another process holds the device, perhaps a running flannel: stop it first (its DaemonSet, or `ip -d link show` and `fuser /dev/net/tun`)"
        }
        Some(Errno::EINVAL) => "a device of that name exists and is no TUN device: remove or rename it",
        _ => "the kernel refused",
    };
    anyhow::Error::new(error).context(format!("cannot open tunnel device {name}: {remedy}"))
}

/// The tunnel device as one side of the data path.
#[derive(Debug)]
pub struct TunIo {
    form: Form,
    queue: usize,
    wake: Arc<WakeFd>,
}

impl Form {
    fn fd(&self, queue: usize) -> BorrowedFd<'_> {
        match self {
            Self::Plain(iface) => plain_fd(iface),
            Self::Frames(frames) => frames.file(queue).as_fd(),
        }
    }
}

impl FrameIo for TunIo {
    fn read(&mut self, memory: &mut [u8]) -> io::Result<Option<usize>> {
        // A plain device says nothing about its packets: they are whole.
        let header = if self.has_headers() { 0 } else { VNET_LEN };
        let (said, packet) = memory.split_at_mut_checked(header).unwrap_or_default();
        said.fill(0);
        match read(self.form.fd(self.queue), packet) {
            Ok(len) => Ok(Some(header + len)),
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    fn write(&mut self, mut parts: &[IoSlice<'_>]) -> Result<(), SendError> {
        if !self.has_headers() {
            let Some((header, packet)) = parts.split_first() else { return Ok(()) };
            if **header != [0; VNET_LEN] {
                return Err(SendError::Unsupported);
            }
            parts = packet;
        }
        loop {
            match writev(self.form.fd(self.queue), parts) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(Errno::EINVAL) => return Err(SendError::Unsupported),
                Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM) => {
                    return Err(SendError::Dropped(DropReason::QueueFull));
                }
                Err(_) => return Err(SendError::Dropped(DropReason::DeviceFailed)),
            }
        }
    }

    fn has_headers(&self) -> bool {
        matches!(self.form, Form::Frames(_))
    }

    fn wait(&mut self) -> io::Result<Wake> {
        wait_readable([Some(self.form.fd(self.queue)), None], &self.wake)
    }
}

#[expect(unsafe_code, reason = "tun-tap predates AsFd")]
fn plain_fd(iface: &Iface) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open for as long as the `Iface` that is borrowed here.
    unsafe { BorrowedFd::borrow_raw(iface.as_raw_fd()) }
}
