//! Whether the kernel has VXLAN, and making way for one that is not the kernel's.

use std::io;

use nix::errno::Errno;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::RouteNetlinkMessage as Message;
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};

use super::read;
use super::socket::Rtnl;

/// Asks the kernel for a VXLAN device without saying which, loading its module where there is one. Nothing is ever
/// made: a kernel that knows VXLAN misses the network identifier (`vxlan_validate`, EINVAL), any other does not know
/// the type (`rtnl_newlink`, EOPNOTSUPP).
///
/// # Errors
/// Without CAP_NET_ADMIN there is no answer.
pub async fn kernel_has_vxlan() -> io::Result<bool> {
    let mut rtnl = Rtnl::open()?;
    let mut link = LinkMessage::default();
    link.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Vxlan)]));
    let answers = rtnl.write(vec![(Message::NewLink(link), NLM_F_CREATE | NLM_F_EXCL)]).await?;
    answered(answers.into_iter().find_map(Result::err).map(|refusal| refusal.errno))
}

fn answered(refusal: Option<Errno>) -> io::Result<bool> {
    match refusal {
        Some(Errno::EOPNOTSUPP) => Ok(false),
        Some(Errno::EPERM) => Err(Errno::EPERM.into()),
        _ => Ok(true),
    }
}

/// Removes the kernel's VXLAN device of a name of ours; says whether there was one. A device of another type stays.
///
/// # Errors
/// It is there and cannot be removed.
pub async fn remove_vxlan(name: &str) -> io::Result<bool> {
    let mut rtnl = Rtnl::open()?;
    let found = read::link_by_name(&mut rtnl, name).await?.filter(|state| state.vxlan.is_some());
    let Some(found) = found else { return Ok(false) };
    let mut link = LinkMessage::default();
    link.header.index = found.index;
    let answers = rtnl.write(vec![(Message::DelLink(link), 0)]).await?;
    match answers.into_iter().find_map(Result::err) {
        Some(refusal) if refusal.errno != Errno::ENODEV => Err(refusal.errno.into()),
        _ => Ok(true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_is_in_how_the_kernel_refuses() {
        assert_eq!(answered(Some(Errno::EINVAL)).ok(), Some(true));
        assert_eq!(answered(Some(Errno::EOPNOTSUPP)).ok(), Some(false));
        assert_eq!(answered(Some(Errno::EPERM)).ok(), None);
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
