//! Traffic rules as a kind of kernel object. What they say, and how they differ, is in [`firewall`](crate::plan::firewall).

use super::{Object, Stage, Step};
use crate::plan::firewall::{FirewallOp, Home, OWN_TABLE, nftables};
use crate::plan::{Observed, Parts, Watched};
use crate::report::Code;

impl Step for FirewallOp {
    fn stage(&self) -> Stage {
        if self.is_optional() { Stage::Guard } else { Stage::Firewall }
    }

    fn object(&self) -> Object {
        Object::Firewall
    }

    fn failure(&self) -> Code {
        if self.is_optional() { Code::TunnelUnguarded } else { Code::KernelFailing }
    }

    fn describe(&self, _: &Watched) -> String {
        self.to_string()
    }

    fn command(&self, _: &Watched) -> Option<String> {
        match self {
            Self::Remove(Home::Nftables(family)) => {
                Some(format!("nft delete table {}", nftables::table(*family)))
            }
            Self::RemoveGuard => Some(format!("nft delete table inet {OWN_TABLE}")),
            // Rules may have thousands of lines, and what is there decides which are to be written.
            _ => None,
        }
    }

    /// What stands there is known by digest, and read each time.
    fn note(&self, _: &mut Observed) -> Parts {
        Parts::NONE
    }
}
