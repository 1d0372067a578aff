//! subnet.env while the daemon runs: whoever removes or edits it, CNI plugins find what is in force.

use tracing::warn;

use super::state::State;
use crate::adapter::file;
use crate::telemetry::metrics::SUBNET_ENV;

/// More than ours ever is.
const LIMIT: u64 = 1 << 16;

impl State {
    /// Puts the file back as it was written last, if it is not like that any more.
    pub(super) fn keep_subnet_env(&self) {
        let written = self.subnet_env.borrow();
        let Some(text) = written.as_ref() else { return };
        let path = &self.args.subnet_file;
        if file::read(path, LIMIT).is_ok_and(|there| there == *text) {
            return;
        }
        match file::replace(path, text) {
            Ok(()) => {
                warn!(path = %path.display(), "repaired what somebody else had changed: write the subnet file");
                self.metrics.repairs.with_label_values(&[SUBNET_ENV]).inc();
                self.health.borrow_mut().subnet_file_trouble = None;
            }
            Err(error) => self.health.borrow_mut().subnet_file_trouble = Some(format!("{error:#}")),
        }
    }
}
