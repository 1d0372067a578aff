//! Every kind of bad news that there is.

use super::Severity;

/// Defines [`Code`]: of each code its meaning in one line, its name, how severe it usually is, how many of it are called
/// in `/readyz`, and what the log says when it is over.
macro_rules! codes {
    ($(#[doc = $meaning:literal] $code:ident: $severity:ident, $one:literal / $many:literal, $over:literal;)*) => {
        /// What kind of thing is wrong. Names are stable: alerts and documents rely on them. The order is the one in
        /// which `/readyz` tells them, and means nothing else.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code {
            $(#[doc = $meaning] $code,)*
        }

        impl Code {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$code,)*];

            /// The name, as in the metric, the log and the documentation.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$code => stringify!($code),)* }
            }

            /// What it means, in a sentence.
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$code => $meaning.trim_ascii(),)* }
            }

            /// How bad it is unless whoever raises it says otherwise.
            pub fn severity(self) -> Severity {
                match self { $(Self::$code => Severity::$severity,)* }
            }

            /// What so many subjects of it are called; empty where there is but one subject.
            pub(super) fn called(self, count: usize) -> &'static str {
                match self { $(Self::$code => if count == 1 { $one } else { $many },)* }
            }

            /// What the log says when it is over; empty for what the log tells otherwise.
            pub(super) fn over(self) -> &'static str {
                match self { $(Self::$code => $over,)* }
            }
        }
    };
}

codes! {
    /// There is no own lease yet, so there is nothing to do.
    NoLease: Broken, "" / "", "";
    /// The node's address is gone, and no other interface can take over.
    NoAddress: Broken, "" / "", "the node has an address again";
    /// The packet threads do not run.
    DataPathDown: Broken, "" / "", "the data path runs again";
    /// What the kernel should hold cannot be computed, or a step toward it that pods need fails.
    KernelFailing: Broken, "" / "", "the kernel holds what it should again";
    /// subnet.env cannot be written, so the CNI plugin may start pods with old values, or none.
    SubnetFile: Broken, "" / "", "the subnet file can be written again";
    /// The kernel has not been programmed since the daemon started.
    Starting: Broken, "" / "", "";
    /// The leases are those that an earlier daemon knew; the source has said nothing yet.
    StartedFromCache: Degraded, "" / "", "the source of leases says what holds again";
    /// Peers are told an address that is none of our Node's, and nobody asked for it.
    AddressInDoubt: Degraded, "" / "", "the address that peers are told is the Node's again";
    /// The Node of this daemon is gone or not usable; the last good lease stays in force.
    OwnNode: Degraded, "" / "", "the own Node is in order again";
    /// The source of leases cannot be read; the last known leases stay in force.
    SourceUnreadable: Degraded, "" / "", "leases can be read again";
    /// A kubeconfig, certificate, key or token that was replaced cannot be used; the one before is.
    CredentialsUnreadable: Degraded, "" / "", "credentials for the API can be read again";
    /// Pods cannot be read; the last known host routes stay in force.
    PodsUnreadable: Degraded, "" / "", "pods can be read again";
    /// The own Node does not carry what peers need to know of it.
    OwnNodeUnwritten: Degraded, "" / "", "the own Node carries what it should again";
    /// The kernel cannot be read, so nobody knows whether it holds what it should.
    KernelUnreadable: Degraded, "" / "", "the kernel can be read again";
    /// A rule of another program defeats ours, or keeps them from working.
    ForeignRules: Degraded, "" / "", "foreign rules let ours work again";
    /// The rules that keep strangers out of the tunnel are not in force.
    TunnelUnguarded: Degraded, "" / "", "the tunnel is guarded again";
    /// A setting of the host stops packets.
    HostSetting: Degraded, "" / "", "settings of the host let packets pass again";
    /// The backend runs in another way than net-conf.json asks for.
    BackendFallback: Degraded, "" / "", "the backend runs as net-conf.json asks again";
    /// A packet thread has ended and was started again within the last minute.
    PacketThreadRestarted: Degraded, "" / "", "packet threads run steadily again";
    /// The kernel refuses the routes or entries of a peer; each is tried again by itself.
    PeerNotProgrammed: Degraded, "node not programmed" / "nodes not programmed", "programmed again";
    /// The lease of a Node is refused.
    NodeRefused: Degraded, "node refused" / "nodes refused", "no longer refused";
    /// A Node runs another backend than this one.
    BackendMismatch: Degraded, "node of another backend type" / "nodes of another backend type", "no longer of another backend type";
    /// The host route of a pod is refused.
    PodRefused: Degraded, "pod refused a host route" / "pods refused a host route", "no longer refused";
    /// The public address of a Node is none that it lists.
    AddressUnlisted: Note, "" / "", "lists its address again";
    /// A step toward the kernel that packets can do without fails.
    KernelWarning: Note, "" / "", "done again";
    /// The kernel refuses an offload that it had agreed to; the data path does without it.
    OffloadRefused: Note, "" / "", "the kernel takes all offloads again";
    /// Nodes cannot be remembered for a start without the API server.
    CacheUnwritable: Note, "" / "", "Nodes can be remembered again";
    /// Refused and odd Nodes get no Event.
    EventsRefused: Note, "" / "", "Events can be written again";
}

impl Code {
    /// Where the documentation explains it: the anchor of a heading that is the name.
    pub fn anchor(self) -> String {
        self.as_str().to_ascii_lowercase()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_camel_case_and_each_has_a_meaning_of_one_line() {
        for code in Code::ALL {
            let name = code.as_str();
            assert!(name.starts_with(|c: char| c.is_ascii_uppercase()), "{name}");
            assert!(name.chars().all(|c| c.is_ascii_alphanumeric()), "{name}");
            let meaning = code.meaning();
            assert!(meaning.ends_with('.') && !meaning.contains('\n') && meaning.len() < 110, "{meaning}");
            assert_eq!(code.called(1).is_empty(), code.called(2).is_empty(), "{name}");
        }
        let anchors: BTreeSet<String> = Code::ALL.iter().map(|code| code.anchor()).collect();
        assert_eq!(anchors.len(), Code::ALL.len());
        assert!(anchors.contains("noderefused"));
    }
}
