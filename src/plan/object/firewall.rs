//! Traffic rules as a kind of kernel object. What they say, and how they differ, is in [`firewall`](crate::plan::firewall).

use super::{Object, Stage, Step};
use crate::plan::firewall::FirewallOp;
use crate::plan::{Observed, Parts, Watched};
use crate::report::Code;
use crate::tables::TableOp;

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
            Self::Table(TableOp::Drop(table)) => Some(format!("nft delete table {table}")),
            // Rules may have thousands of lines, and what is there decides which are to be written.
            _ => None,
        }
    }

    /// What stands there is known by digest, and read each time.
    fn note(&self, _: &mut Observed) -> Parts {
        Parts::NONE
    }
}
