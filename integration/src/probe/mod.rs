//! What pods, nodes and strangers do to each other, in plain Rust: no tool's output is parsed to learn a result.

pub mod blame;
pub mod bulk;
pub mod capture;
pub mod complaint;
pub mod echo;
pub mod flows;
pub mod http;
pub mod icmp;
pub mod load;
pub mod loss;
pub mod netexec;
pub mod packet;
pub mod reach;
pub mod sequence;
mod sockopt;
pub mod udp;
