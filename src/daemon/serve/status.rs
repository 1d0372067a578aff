//! How the daemon is, as CNI plugins ask.

use std::rc::Rc;

use crate::daemon::concerns::Concerns;
use crate::daemon::parts::Parts;
use crate::daemon::setup::Setup;
use crate::daemon::subnet_file::SubnetFile;
use crate::report::{Code, Subject};
use crate::view::{ConcernView, StatusView};

/// Says how the daemon is.
pub(super) struct Status {
    setup: Rc<Setup>,
    subnet_file: Rc<SubnetFile>,
    concerns: Concerns,
}

impl Status {
    pub(super) fn new(parts: &Parts) -> Self {
        Self {
            setup: parts.setup.clone(),
            subnet_file: parts.subnet_file.clone(),
            concerns: parts.concerns.clone(),
        }
    }

    /// Looks. Single nodes and pods of the cluster are left out: there may be thousands.
    pub(super) fn look(&self) -> StatusView {
        let concerns = self.concerns.read(|board| {
            let here = board.concerns().filter(|(concern, _)| concern.subject == Subject::Here);
            let shown = here.map(|(concern, _)| ConcernView {
                code: concern.code.as_str().into(),
                severity: concern.severity.as_str().into(),
                text: concern.text.clone(),
            });
            shown.collect()
        });
        StatusView {
            node: self.setup.node.clone(),
            readiness: self.concerns.readiness().answer().1,
            starting: [Code::Starting, Code::NoLease]
                .into_iter()
                .any(|code| self.concerns.here(code).is_some()),
            subnet_env: self.subnet_file.written(),
            concerns,
        }
    }
}
