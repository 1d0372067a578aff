//! Which of the two kinds of iptables a machine uses.
//!
//! They are separate rule sets in one kernel, and mixing them is how rules get lost. What the kubelet or anybody
//! else has put into one of them says which one is in use; a default of some program does not.

use std::fmt;

/// A kind of iptables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Variant {
    /// iptables over nf_tables.
    Nft,
    /// The old one, over xtables.
    Legacy,
}

impl Variant {
    /// What `iptables --version` calls it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nft => "nf_tables",
            Self::Legacy => "legacy",
        }
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What was found about one variant.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Evidence {
    /// Its programs are installed.
    pub installed: bool,
    /// A plain `iptables` is this one.
    pub default: bool,
    /// It holds chains of Kubernetes' (`KUBE-…`).
    pub kubernetes: bool,
    /// It holds rules of anybody's.
    pub rules: bool,
}

/// The variant to use, and why in words; `None` when neither is installed.
pub fn choose(nft: Evidence, legacy: Evidence) -> Option<(Variant, &'static str)> {
    match (nft.installed, legacy.installed) {
        (false, false) => return None,
        (true, false) => return Some((Variant::Nft, "it is the only one installed")),
        (false, true) => return Some((Variant::Legacy, "it is the only one installed")),
        (true, true) => {}
    }
    // A machine that was migrated may hold remains in the old one: the new one is asked first.
    let found = [
        (nft.kubernetes, Variant::Nft, "Kubernetes has its chains there"),
        (legacy.kubernetes, Variant::Legacy, "Kubernetes has its chains there"),
        (nft.rules, Variant::Nft, "there are rules already"),
        (legacy.rules, Variant::Legacy, "there are rules already"),
        (legacy.default, Variant::Legacy, "`iptables` is this one"),
    ];
    let chosen = found.into_iter().find(|(holds, ..)| *holds);
    Some(chosen.map_or((Variant::Nft, "`iptables` is this one"), |(_, variant, why)| (variant, why)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_use_wins_over_what_is_default() {
        let here = Evidence { installed: true, ..Evidence::default() };
        let kube = Evidence { kubernetes: true, rules: true, ..here };
        let rules = Evidence { rules: true, ..here };
        let default = Evidence { default: true, ..here };
        let variant = |nft, legacy| choose(nft, legacy).map(|(variant, _)| variant);
        assert_eq!(variant(Evidence::default(), Evidence::default()), None);
        assert_eq!(variant(kube, Evidence { installed: false, ..kube }), Some(Variant::Nft));
        assert_eq!(variant(Evidence { installed: false, ..kube }, here), Some(Variant::Legacy));
        assert_eq!(variant(Evidence { default: true, ..rules }, kube), Some(Variant::Legacy));
        assert_eq!(variant(kube, kube), Some(Variant::Nft));
        assert_eq!(variant(default, rules), Some(Variant::Legacy));
        assert_eq!(variant(here, default), Some(Variant::Legacy));
        assert_eq!(variant(default, here), Some(Variant::Nft));
    }
}
