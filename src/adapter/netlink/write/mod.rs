//! Steps of a plan as netlink requests: one file for each kind of kernel object.

mod address;
mod fdb;
mod link;
mod neighbour;
mod route;

use std::net::IpAddr;

use netlink_packet_route::AddressFamily;
use nix::errno::Errno;

use super::CAPABILITY;
use super::read::Indices;
use super::wire::{Change, Refusal, Rtnetlink, kind_of};
use crate::plan::object::Stage;
use crate::plan::{Op, Watched};
use crate::ports::KernelError;

/// A request for one step.
type Request = Change<Rtnetlink>;

/// The request for one step; `None` when it needs none, or its device is not there.
pub(in crate::adapter) fn request(op: &Op, indices: &Indices, alias: &str) -> Option<Request> {
    match op {
        Op::Link(step) => link::request(step, indices, alias),
        Op::Address(step) => address::request(step, indices),
        Op::Fdb(step) => fdb::request(step, indices),
        Op::Neighbour(step) => neighbour::request(step, indices),
        Op::Route(step) => route::request(step, indices),
        Op::Firewall(_) => None,
    }
}

/// Requests that reach what the kernel has refused to do at once, if there are such.
pub(in crate::adapter) fn detour(op: &Op, refusal: &Refusal, indices: &Indices) -> Option<[Request; 2]> {
    match op {
        Op::Route(step) => route::detour(step, refusal, indices),
        _ => None,
    }
}

/// Turns a refusal into an error for people, or into success when the kernel is as the step would leave it.
pub(in crate::adapter) fn judge(op: &Op, refusal: &Refusal, watched: &Watched) -> Result<(), KernelError> {
    let removes = [Stage::Clear, Stage::DropRoute, Stage::DropNeighbour, Stage::DropFdb, Stage::DropAddress];
    if removes.contains(&op.stage()) && refusal.is_absence() {
        return Ok(());
    }
    let (cause, remedy) = match (refusal.errno, op) {
        (Errno::EPERM, _) => (None, Some(CAPABILITY)),
        (errno, Op::Link(step)) => (None, link::remedy(step, errno)),
        (errno, Op::Route(step)) => route::explain(step, errno),
        _ => (None, None),
    };
    let cause = cause.map_or_else(|| refusal.to_string(), str::to_owned);
    let (kind, errno) = (kind_of(refusal.errno), Some(refusal.errno as i32));
    Err(KernelError { remedy, kind, errno, ..KernelError::new(op.describe(watched), cause) })
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}
