//! Settings of the host that decide whether forwarded packets pass. They are the operator's: flannel does not set
//! them, and neither do we; but what stops all pods is said in words.

use encap::Family;

use super::Intent;

/// What was read under /proc/sys; `None` where there is no such setting.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// `net.ipv4.ip_forward`.
    pub forward_v4: Option<bool>,
    /// `net.ipv6.conf.all.forwarding`.
    pub forward_v6: Option<bool>,
    /// Strict reverse path filtering (`rp_filter` 1, for all or for the device) on a device that pods' packets come by.
    pub strict_rp_filter: bool,
}

impl HostFacts {
    /// What is the matter, a sentence with the remedy each.
    pub fn worries(&self, intent: &Intent) -> Vec<String> {
        let mut worries = Vec::new();
        for family in intent.families() {
            let (forwards, name) = match family {
                Family::V4 => (self.forward_v4, "net.ipv4.ip_forward"),
                Family::V6 => (self.forward_v6, "net.ipv6.conf.all.forwarding"),
            };
            if forwards == Some(false) {
                worries.push(format!(
                    "{name} is 0, so that no {family} packet passes between pods and other nodes: set it to 1 \
                     (`sysctl -w {name}=1`, and in /etc/sysctl.d for the next boot)"
                ));
            }
        }
        if intent.backend.direct_routing() && self.strict_rp_filter {
            worries.push(
                "rp_filter is 1: while nodes do not agree on whether they share a link, a packet that comes through \
                 the tunnel and would be answered directly is dropped; set net.ipv4.conf.all.rp_filter to 2"
                    .to_owned(),
            );
        }
        worries
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::sample_intent;

    #[test]
    fn what_stops_all_pods_is_named_with_its_remedy() {
        let intent = sample_intent();
        let off = HostFacts { forward_v4: Some(false), forward_v6: Some(false), strict_rp_filter: true };
        let worries = off.worries(&intent);
        assert_eq!(worries.len(), 1, "{worries:?}");
        assert!(worries[0].contains("sysctl -w net.ipv4.ip_forward=1"), "{worries:?}");
        let dual = Intent { networks: vec!["fd00:10:244::/56".parse().unwrap()], ..intent };
        assert!(off.worries(&dual)[0].contains("net.ipv6.conf.all.forwarding"));
        assert!(HostFacts::default().worries(&dual).is_empty());
    }
}
