//! The two ends of the data path: the tunnel device and the outer UDP socket.

mod frames;
mod mmsg;
mod reuseport;
mod steering;
pub mod tun;
pub mod udp;
mod wake;

pub use wake::WakeFd;
