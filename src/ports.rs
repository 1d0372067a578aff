//! The traits between the pure half and the machine. Adapters implement them; the daemon joins the two.

mod packet;

use std::future::Future;
use std::time::Instant;

use thiserror::Error;

pub use packet::{Batch, DatagramIo, FrameIo, Received, SendError, Target, Transmit, Wake};

use crate::lease::NodeFacts;
use crate::plan::{Observed, Op, Watched};

/// The kernel's configuration: links, addresses, routes, neighbours, firewall.
pub trait Kernel {
    /// Says what the kernel holds now of what is watched. What nothing speaks against is not read again, unless
    /// `everything` is to be.
    fn observe(
        &mut self,
        watched: &Watched,
        everything: bool,
    ) -> impl Future<Output = Result<Seen<'_>, KernelError>>;

    /// Carries out steps of one [`Stage`](crate::plan::Stage), each whatever becomes of the others, and says of each
    /// in order what became of it.
    fn apply(&mut self, ops: &[Op]) -> impl Future<Output = Vec<Result<(), KernelError>>>;

    /// Waits until somebody changed something that matters here. May wake for nothing, never sleeps through a
    /// change: when the kernel says that events were lost, that is an event too.
    fn changed(&mut self) -> impl Future<Output = ()>;
}

/// A look at the kernel.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// What it holds.
    pub observed: &'a Observed,
    /// How many entries were not as they were believed to be, although nothing had spoken against them. A kernel that
    /// announces all that it does leaves this at 0.
    pub unannounced: usize,
}

/// A kernel step that failed.
#[derive(Debug, Error)]
#[error("{doing}: {cause}{}", remedy.map(|text| format!(" ({text})")).unwrap_or_default())]
pub struct KernelError {
    /// What was attempted, in words.
    pub doing: String,
    /// What the kernel or the program said.
    pub cause: String,
    /// What the operator can do about it, where that is known.
    pub remedy: Option<&'static str>,
    /// What sort of fault it is.
    pub kind: FaultKind,
    /// The kernel's error number, where it gave one.
    pub errno: Option<i32>,
}

impl KernelError {
    /// A failure of which nothing more is known.
    pub fn new(doing: impl Into<String>, cause: impl Into<String>) -> Self {
        Self {
            doing: doing.into(),
            cause: cause.into(),
            remedy: None,
            kind: FaultKind::default(),
            errno: None,
        }
    }
}

/// What sort of fault keeps the kernel from doing something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FaultKind {
    /// The process lacks a right, most likely CAP_NET_ADMIN.
    NotPermitted,
    /// This kernel does not have it, or its module is not loaded.
    Unsupported,
    /// Something else is in that place.
    Occupied,
    /// What it is about, or what it needs, is not there.
    Absent,
    /// Nothing leads there.
    Unreachable,
    /// The kernel lacks memory or room.
    Exhausted,
    /// Any other.
    #[default]
    Other,
}

/// Where nodes and their leases come from.
pub trait LeaseSource {
    /// Waits for the next thing that the source has to say.
    fn next(&mut self) -> impl Future<Output = Arrival>;
}

/// Something a lease source said, and when the news reached this machine: latency is measured from there.
#[derive(Debug)]
pub struct Arrival {
    /// What was said.
    pub event: LeaseEvent,
    /// When.
    pub at: Instant,
}

/// What a lease source says.
pub type LeaseEvent = News<NodeFacts>;

/// What is said about things of one kind: the three verbs of an index, and the source's own health.
#[derive(Debug)]
pub enum News<T> {
    /// The complete set: whatever is not in it is gone.
    Reset(Vec<T>),
    /// One was added or changed.
    Apply(Box<T>),
    /// One, by name, was removed.
    Delete(String),
    /// The source can be read again, and nothing has changed.
    Restored,
    /// The source cannot be read; what was said before stays in force. The text names cause and remedy.
    Trouble(String),
    /// The source has said nothing since the start; this is the complete set as it was known at that time, RFC 3339.
    Remembered(Vec<T>, String),
}
