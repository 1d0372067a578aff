//! Answers of the admin endpoint and of the local socket.

mod routes;

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use encap::PeerId;

use super::state::State;
use crate::adapter::control::Out;
use crate::adapter::http::{Answer, Page};
use crate::adapter::netlink;
use crate::config;
use crate::plan::Object;
use crate::plan::verify::compare;
use crate::report::{Board, Code, Readiness, stuck};
use crate::telemetry::log::LogControl;
use crate::view::{DifferenceView, Request, VerifyPart, VerifyView};

/// Rows in one part of a long answer: between two parts everything else on this thread has its turn.
const PART: usize = 500;

/// Folds the data path's counters into the state of each peer.
#[expect(clippy::disallowed_methods, reason = "the wiring place owns the clock")]
pub(super) fn fold(state: &State) {
    let snapshot = state.spine.snapshot();
    state.peers.fold(&state.shared, snapshot.peers.iter().map(|lease| lease.id), SystemTime::now());
}

/// Writes a page of the admin endpoint.
#[expect(clippy::disallowed_methods, reason = "the wiring place owns the clock")]
pub(super) fn admin(state: &State, page: Page) -> Answer {
    let readiness = state.concerns.readiness();
    match page {
        Page::Healthz => match stuck(state.busy_since.get(), Instant::now()) {
            None => Answer::text(200, "flanneld is running"),
            Some(reason) => Answer::text(500, format!("flanneld is stuck: {reason}")),
        },
        Page::Readyz => {
            let (status, body) = readiness.answer();
            Answer::text(status, body)
        }
        Page::Metrics => {
            state.metrics.ready.set(i64::from(!matches!(readiness, Readiness::NotReady(_))));
            state.metrics.concerns.reset();
            for ((code, severity), count) in state.concerns.read(Board::counts) {
                let labels = [code.as_str(), severity.as_str()];
                state.metrics.concerns.with_label_values(&labels).set(count as i64);
            }
            state.metrics.rules.reset();
            for (manager, variant) in keepers(state) {
                state.metrics.rules.with_label_values(&[manager, variant]).set(1);
            }
            match state.metrics.render() {
                Ok(body) => Answer { status: 200, content_type: prometheus::TEXT_FORMAT, body: body.into() },
                Err(error) => Answer::text(500, format!("{error:#}")),
            }
        }
    }
}

/// Answers a request of the local socket.
pub(super) async fn control(state: Rc<State>, log: LogControl, request: Request, out: Out) -> Result<()> {
    match request {
        Request::Routes => {
            fold(&state);
            routes::tell(&state, &out).await
        }
        Request::Verify { repair } => {
            let mut view = if repair { repaired(&state).await? } else { verify(&state).await? };
            let mut more = view.differences.split_off(PART.min(view.differences.len()));
            out.send(&view).await?;
            while !more.is_empty() {
                let rest = more.split_off(PART.min(more.len()));
                out.send(&VerifyPart { differences: more }).await?;
                more = rest;
            }
            Ok(())
        }
        Request::LogLevel { filter } => {
            config::check_log_filter(&filter).map_err(anyhow::Error::msg)?;
            log.set(&filter)?;
            tracing::info!(filter, "log level changed");
            Ok(())
        }
    }
}

/// Has the loop look, and try again what it would leave alone for now, until nothing differs or it had its time: longer
/// than legacy iptables goes unread.
#[expect(clippy::disallowed_methods, reason = "the wiring place owns the clock")]
async fn repaired(state: &State) -> Result<VerifyView> {
    const PATIENCE: Duration = Duration::from_secs(7);
    const PAUSE: Duration = Duration::from_millis(300);
    let begun = Instant::now();
    loop {
        // The same goal once more: whoever waits for another wakes up.
        state.goals.send_modify(|_| {});
        tokio::time::sleep(PAUSE).await;
        let view = verify(state).await?;
        if view.differences.is_empty() || begun.elapsed() > PATIENCE {
            return Ok(view);
        }
    }
}

/// Compares anew, whatever the loop knows, but for what it put into the firewall: rules have no other form in which
/// they could be compared.
async fn verify(state: &State) -> Result<VerifyView> {
    let in_force = state.in_force.borrow().clone();
    let (desired, watched) = in_force.with_context(|| state.concerns.readiness().answer().1)?;
    let mut observed = netlink::survey(&watched).await?;
    let rules = state.rules.borrow().clone();
    if let Some(rules) = rules {
        observed.firewall = rules.state().await?;
    }
    let repair = format!("flanneld verify --repair --subnet-file {}", state.args.subnet_file.display());
    let compared = compare(&desired, &observed, &watched, &repair);
    let snapshot = state.spine.snapshot();
    let error = |object: Object, peer: Option<PeerId>| match object {
        Object::Firewall => {
            state.concerns.first(&[Code::TunnelUnguarded, Code::ForeignRules, Code::KernelFailing])
        }
        _ => {
            let lease = snapshot.peers.iter().find(|lease| Some(lease.id) == peer)?;
            state.concerns.about(Code::PeerNotProgrammed, &lease.node)
        }
    };
    let differences = compared.differences.into_iter().map(|difference| DifferenceView {
        error: error(difference.object, difference.peer),
        object: difference.object.as_str().into(),
        step: difference.step,
        command: difference.command,
    });
    Ok(VerifyView {
        node: state.node.clone(),
        backend: state.backend.name().into(),
        wanted: compared.wanted.into_iter().map(|(object, count)| (object.as_str().into(), count)).collect(),
        differences: differences.collect(),
        rules: compared.rules,
    })
}

/// Who keeps the traffic rules now.
fn keepers(state: &State) -> BTreeSet<(&'static str, &'static str)> {
    state.rules.borrow().as_ref().map(|rules| rules.keepers()).unwrap_or_default()
}
