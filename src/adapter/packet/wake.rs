//! How a packet thread sleeps, and how it is woken.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

#[cfg(feature = "fault-points")]
use crate::adapter::fault;
use crate::ports::Wake;

/// Wakes a thread that sleeps in `poll`, and says how long it may look before it sleeps.
#[derive(Debug)]
pub struct WakeFd {
    event: EventFd,
    spin: Duration,
}

impl WakeFd {
    /// A fresh one, not yet rung. A thread that has nothing to do stays awake for `spin` more.
    pub fn new(spin: Duration) -> Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let event = EventFd::from_value_and_flags(0, flags).context("cannot create an eventfd")?;
        Ok(Self { event, spin })
    }

    /// Wakes every thread that waits, now and later: nobody reads the counter back.
    pub fn ring(&self) -> Result<()> {
        self.event.write(1).context("cannot ring the data path's eventfd").map(drop)
    }
}

/// Sleeps until one of the descriptors is readable (or in error: the next read says which) or `wake` rings.
pub(super) fn wait_readable(from: [Option<BorrowedFd<'_>>; 2], wake: &WakeFd) -> io::Result<Wake> {
    // Being woken costs more than a packet's whole way does. Whoever else wants this CPU goes first.
    let asleep = (!wake.spin.is_zero()).then(|| Instant::now() + wake.spin);
    let wake = wake.event.as_fd();
    loop {
        let awake = asleep.is_some_and(|asleep| Instant::now() < asleep);
        let patience = if awake { PollTimeout::ZERO } else { PollTimeout::NONE };
        #[cfg(feature = "fault-points")]
        let patience = if fault::armed() { fault::PATIENCE.into() } else { patience };
        #[cfg(feature = "fault-points")]
        if let Some(end) = fault::in_packet_thread() {
            return end;
        }
        // The same one twice does no harm.
        let mut fds =
            [Some(wake), from[0], from[1]].map(|fd| PollFd::new(fd.unwrap_or(wake), PollFlags::POLLIN));
        match poll(&mut fds, patience) {
            Err(Errno::EINTR) => {}
            Ok(0) => std::thread::yield_now(),
            Err(error) => return Err(error.into()),
            Ok(_) if fds[0].any() == Some(true) => return Ok(Wake::Stop),
            Ok(_) => return Ok(Wake::Ready),
        }
    }
}

/// Sleeps until the socket takes more; `false` when told to stop meanwhile.
pub(super) fn wait_writable(socket: BorrowedFd<'_>, wake: &WakeFd) -> bool {
    let mut fds =
        [PollFd::new(socket, PollFlags::POLLOUT), PollFd::new(wake.event.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::NONE).is_ok() && fds[1].any() != Some(true)
}
