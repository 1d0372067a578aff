//! A proxy of ours in front of the real API server that does to its answers what networks, load balancers and servers
//! in trouble do.
//!
//! It ends TLS with the server's own certificate, so a daemon notices nothing but the port. Each rule of the plan
//! is used up by the requests or events that it hits, and every hit is counted. One thread per connection; all end with
//! the [`Proxy`].

mod http;
mod plan;
mod relay;
mod wire;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd as _, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};
use socket2::SockRef;

pub use plan::{At, Fault};

use crate::apiserver::ApiServer;
use crate::topology::{Cluster, GATEWAY};
use plan::Plan;
use relay::Relay;

/// Where the proxy of a lab cluster listens, beside the API server itself.
pub const PORT: u16 = 6444;

/// A running proxy.
pub struct Proxy {
    plan: Arc<Plan>,
    open: Arc<Open>,
    listener: TcpListener,
}

impl Proxy {
    /// Starts it on the switch. Only requests that come from `victim` meet faults.
    ///
    /// # Errors
    /// When the port is taken or the server's certificate cannot be read.
    pub fn start(cluster: &Cluster, server: &ApiServer, victim: IpAddr) -> Result<Self> {
        let address = SocketAddr::new(GATEWAY.into(), PORT);
        let listener = cluster.switch().run(|| Ok(TcpListener::bind(address)?)).context("the fault proxy")?;
        let plan = Arc::new(Plan::new(victim));
        let open = Arc::new(Open::default());
        let relay = Arc::new(Relay::new(server, Arc::clone(&plan), Arc::clone(&open))?);
        let (accepting, netns) = (listener.try_clone()?, cluster.switch().fd());
        std::thread::spawn(move || {
            // Threads inherit the namespace of the one that makes them.
            if setns(&*netns, CloneFlags::CLONE_NEWNET).is_err() {
                return;
            }
            while let Ok((stream, from)) = accepting.accept() {
                let relay = Arc::clone(&relay);
                // A connection that fails is what this program is for.
                std::thread::spawn(move || drop(relay.serve(stream, from.ip())));
            }
        });
        Ok(Self { plan, open, listener })
    }

    /// The next `times` requests or events of that sort meet this fault, after those planned before.
    pub fn plan(&self, at: At, fault: Fault, times: u32) {
        self.plan.add(at, fault, times);
    }

    /// Forgets what is planned.
    pub fn clear(&self) {
        self.plan.clear();
    }

    /// How many times a fault is still to be met.
    pub fn pending(&self) -> u32 {
        self.plan.pending()
    }

    /// Breaks every connection.
    pub fn cut(&self) {
        self.open.close();
    }

    /// How often each fault was met.
    pub fn counts(&self) -> BTreeMap<String, u32> {
        self.plan.counts()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // On a listening socket this ends `accept`.
        let _ = SockRef::from(&self.listener).shutdown(std::net::Shutdown::Both);
        self.open.close();
    }
}

/// The sockets of all connections.
#[derive(Default)]
struct Open(Mutex<BTreeMap<RawFd, TcpStream>>);

impl Open {
    /// Keeps a handle on `stream` for as long as the answer lives.
    fn keep(self: &Arc<Self>, stream: &TcpStream) -> Result<Kept> {
        let handle = stream.try_clone()?;
        let key = handle.as_raw_fd();
        self.all().insert(key, handle);
        Ok(Kept { open: Arc::clone(self), key })
    }

    fn close(&self) {
        for stream in self.all().values() {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<RawFd, TcpStream>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Gives the handle back: a connection ends with its last one.
struct Kept {
    open: Arc<Open>,
    key: RawFd,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.open.all().remove(&self.key);
    }
}
