//! Nodes that publish an address which their `status.addresses` do not list.
//!
//! Whoever may write a Node's annotations decides where the packets for its pods go; `status.addresses` is written by others,
//! the kubelet and the cloud. Where the two differ that may be meant (NAT between nodes, an interface that the kubelet does
//! not know), so nothing is refused; but somebody should look.

use std::fmt;
use std::net::IpAddr;

use super::NodeFacts;
use super::annotation::name;
use crate::config::excerpt;

/// An address that packets go to although its Node does not list it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unlisted {
    /// The Node's name.
    pub node: String,
    /// The annotation that names the address.
    pub field: &'static str,
    /// The address.
    pub address: IpAddr,
}

impl Unlisted {
    /// `None` if the Node lists `address`, lists none at all, or says that another is meant.
    pub fn of(facts: &NodeFacts, address: IpAddr) -> Option<Self> {
        let annotations = &facts.annotations;
        let (field, overwrite) = match address {
            IpAddr::V4(_) => (name::PUBLIC_IP, &annotations.public_ip_overwrite),
            IpAddr::V6(_) => (name::PUBLIC_IPV6, &annotations.public_ipv6_overwrite),
        };
        let meant = overwrite.as_deref().is_some_and(|text| !text.trim().is_empty());
        let listed = facts.addresses.iter().any(|ip| ip.to_canonical() == address);
        let odd = !meant && !listed && !facts.addresses.is_empty();
        odd.then(|| Self { node: facts.name.clone(), field, address })
    }
}

/// One line: node, field, value, what is odd, and what to do.
impl fmt::Display for Unlisted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "node {}: {} {} is none of its status.addresses: if that is meant, as with NAT between nodes, write it into \
             {}-overwrite too; if not, look who changed the annotation (it is used)",
            excerpt(&self.node),
            self.field,
            self.address,
            self.field
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_odd_if_its_node_neither_lists_nor_means_it() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let mut facts = NodeFacts { name: "n2".into(), ..NodeFacts::default() };
        assert_eq!(Unlisted::of(&facts, ip("192.0.2.1")), None, "a Node without addresses says nothing");
        facts.addresses = vec![ip("192.0.2.1"), ip("2001:db8::1")];
        assert_eq!(Unlisted::of(&facts, ip("192.0.2.1")), None);
        for (address, field) in [("192.0.2.9", "public-ip"), ("2001:db8::9", "public-ipv6")] {
            let odd = Unlisted::of(&facts, ip(address)).unwrap();
            assert_eq!(odd.field, field);
            let text = odd.to_string();
            assert!(text.contains(address) && text.contains(&format!("{field}-overwrite")), "{text}");
        }
        facts.annotations.public_ip_overwrite = Some("192.0.2.9".into());
        assert_eq!(Unlisted::of(&facts, ip("192.0.2.9")), None, "it is meant");
        assert!(Unlisted::of(&facts, ip("2001:db8::9")).is_some(), "the other family's is not");
    }
}
