//! Whether the kernel has VXLAN, and making way for one that is not the kernel's.

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use nix::errno::Errno;

use super::Rtnl;
use super::read;
use super::wire::{Error, Refusal};

/// Asks the kernel for a VXLAN device without saying which, loading its module where there is one. Nothing is ever
/// made: a kernel that knows VXLAN misses the network identifier (`vxlan_validate`, EINVAL), any other does not know
/// the type (`rtnl_newlink`, EOPNOTSUPP).
///
/// # Errors
/// Without CAP_NET_ADMIN there is no answer.
pub async fn kernel_has_vxlan() -> Result<bool, Error> {
    let mut rtnl = Rtnl::open()?;
    let mut link = LinkMessage::default();
    link.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Vxlan)]));
    let answers = rtnl.write(&[(Message::NewLink(link), NLM_F_CREATE | NLM_F_EXCL)]).await?;
    answered(answers.into_iter().find_map(Result::err))
}

fn answered(refusal: Option<Refusal>) -> Result<bool, Error> {
    match refusal {
        Some(refusal) if refusal.errno == Errno::EOPNOTSUPP => Ok(false),
        Some(refusal) if refusal.errno == Errno::EPERM => Err(refusal.into()),
        _ => Ok(true),
    }
}

/// Removes the kernel's VXLAN device of a name of ours; says whether there was one. A device of another type stays.
///
/// # Errors
/// It is there and cannot be removed.
pub async fn remove_vxlan(name: &str) -> Result<bool, Error> {
    let mut rtnl = Rtnl::open()?;
    let found = read::link_by_name(&mut rtnl, name).await?.filter(|state| state.vxlan.is_some());
    let Some(found) = found else { return Ok(false) };
    let mut link = LinkMessage::default();
    link.header.index = found.index;
    let answers = rtnl.write(&[(Message::DelLink(link), 0)]).await?;
    match answers.into_iter().find_map(Result::err) {
        Some(refusal) if refusal.errno != Errno::ENODEV => Err(refusal.into()),
        _ => Ok(true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_is_in_how_the_kernel_refuses() {
        let refused = |errno| answered(Some(Refusal { errno, text: None })).ok();
        assert_eq!(refused(Errno::EINVAL), Some(true));
        assert_eq!(refused(Errno::EOPNOTSUPP), Some(false));
        assert_eq!(refused(Errno::EPERM), None);
    }

    #[tokio::test]
    async fn this_kernel_answers_and_makes_no_device() {
        let before = nix::net::if_::if_nameindex().unwrap().into_iter().count();
        if nix::unistd::geteuid().is_root() {
            kernel_has_vxlan().await.unwrap();
        }
        assert_eq!(nix::net::if_::if_nameindex().unwrap().into_iter().count(), before);
    }
}
