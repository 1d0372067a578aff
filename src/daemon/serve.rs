//! Answers of the admin endpoint and of the local socket.

mod routes;
mod status;
mod verify;

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Instant;

use anyhow::Result;

use self::routes::Map;
use self::status::Status;
use self::verify::Verify;
use super::applied::Applied;
use super::concerns::Concerns;
use super::parts::{Parts, Rules};
use crate::adapter::control::Out;
use crate::adapter::firewall::Look;
use crate::adapter::http::{Answer, Page};
use crate::config;
use crate::report::{Board, Readiness, stuck};
use crate::telemetry::log::LogControl;
use crate::telemetry::metrics::{self, Metrics};
use crate::view::Request;

/// Rows in one part of a long answer: between two parts everything else on this thread has its turn.
const PART: usize = 500;

/// The pages of the admin endpoint.
pub(super) struct Admin {
    applied: Rc<Applied>,
    rules: Rules,
    metrics: Rc<Metrics>,
    concerns: Concerns,
}

impl Admin {
    pub(super) fn new(parts: &Parts) -> Self {
        Self {
            applied: parts.applied.clone(),
            rules: parts.rules.clone(),
            metrics: parts.metrics.clone(),
            concerns: parts.concerns.clone(),
        }
    }

    /// Writes a page.
    #[expect(clippy::disallowed_methods, reason = "the wiring place owns the clock")]
    pub(super) fn answer(&self, page: Page) -> Answer {
        let readiness = self.concerns.readiness();
        match page {
            Page::Healthz => match stuck(self.applied.busy_since(), Instant::now()) {
                None => Answer::text(200, "flanneld is running"),
                Some(reason) => Answer::text(500, format!("flanneld is stuck: {reason}")),
            },
            Page::Readyz => {
                let (status, body) = readiness.answer();
                Answer::text(status, body)
            }
            Page::Metrics => self.metrics(&readiness),
        }
    }

    fn metrics(&self, readiness: &Readiness) -> Answer {
        self.metrics.ready.set(i64::from(!matches!(readiness, Readiness::NotReady(_))));
        self.metrics.concerns.reset();
        for ((code, severity), count) in self.concerns.read(Board::counts) {
            let labels = [code.as_str(), severity.as_str()];
            self.metrics.concerns.with_label_values(&labels).set(count as i64);
        }
        self.metrics.rules.reset();
        for (manager, variant) in keepers(&self.rules) {
            self.metrics.rules.with_label_values(&[manager, variant]).set(1);
        }
        match self.metrics.render() {
            Ok(body) => Answer { status: 200, content_type: metrics::CONTENT_TYPE, body: body.into() },
            Err(error) => Answer::text(500, format!("{error:#}")),
        }
    }
}

/// The answers of the local socket.
pub(super) struct Local {
    map: Map,
    status: Status,
    verify: Verify,
    log: LogControl,
}

impl Local {
    pub(super) fn new(parts: &Parts, log: LogControl) -> Self {
        Self { map: Map::new(parts), status: Status::new(parts), verify: Verify::new(parts), log }
    }

    /// Answers a request.
    pub(super) async fn answer(self: Rc<Self>, request: Request, out: Out) -> Result<()> {
        match request {
            Request::Routes => self.map.tell(&out).await,
            Request::Status => out.send(&self.status.look()).await,
            Request::Verify { repair } => self.verify.tell(repair, &out).await,
            Request::LogLevel { filter } => {
                config::check_log_filter(&filter).map_err(anyhow::Error::msg)?;
                self.log.set(&filter)?;
                tracing::info!(filter, "log level changed");
                Ok(())
            }
        }
    }
}

/// Who keeps the traffic rules now.
fn keepers(rules: &Rules) -> BTreeSet<(&'static str, &'static str)> {
    rules.get().map(Look::keepers).unwrap_or_default()
}
