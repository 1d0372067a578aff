//! The one loop that makes the kernel hold what it should.
//!
//! Level-triggered: each pass reads the kernel, computes the desired state, and applies the difference. Start,
//! a new lease, a device that somebody deleted and the clean-up after a crash are the same pass.

use std::time::Duration;

use tokio::sync::watch;

use crate::plan::{Desired, Intent, Object, Observed, Op, desired, diff, tunnel_mtu};
use crate::ports::{Kernel, Watched};

/// How often to look although no event came: events can be lost, and a look costs a few netlink requests.
const SAFETY: Duration = Duration::from_secs(30);

/// Shortest and longest wait before a failed pass is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// What the loop works toward.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Goal {
    /// Configuration and own lease.
    pub intent: Intent,
    /// Index of the external interface, whose MTU decides the tunnel's.
    pub external: u32,
}

/// What one pass did.
#[derive(Debug)]
pub struct Pass {
    /// The state worked toward; `None` when it could not be computed.
    pub desired: Option<Desired>,
    /// Steps that were carried out.
    pub done: Vec<Op>,
    /// The steps undid somebody else's change, rather than following one of ours.
    pub repair: bool,
    /// What keeps traffic rules from working although they are in force, a sentence each.
    pub firewall_troubles: Vec<String>,
    /// Why the kernel does not hold the desired state; empty when it does.
    pub errors: Vec<String>,
}

impl Pass {
    /// The kernel holds what it should.
    pub fn converged(&self) -> bool {
        self.errors.is_empty()
    }

    /// One object per carried-out step.
    pub fn objects(&self) -> impl Iterator<Item = Object> {
        self.done.iter().map(Op::object)
    }
}

/// Runs until the sender of `goals` is dropped; `begin` and `report` frame each pass.
pub async fn run<K: Kernel>(
    mut kernel: K,
    mut goals: watch::Receiver<Option<Goal>>,
    mut begin: impl FnMut(),
    mut report: impl FnMut(&Pass),
) {
    let mut settled: Option<Desired> = None;
    let mut retry = RETRY.0;
    loop {
        let goal = goals.borrow_and_update().clone();
        let wait = match goal {
            None => None,
            Some(goal) => {
                begin();
                let pass = pass(&mut kernel, &goal, settled.as_ref()).await;
                report(&pass);
                if pass.converged() {
                    settled = pass.desired;
                    retry = RETRY.0;
                    Some(SAFETY)
                } else {
                    let wait = retry;
                    retry = (retry * 2).min(RETRY.1);
                    Some(wait)
                }
            }
        };
        tokio::select! {
            changed = goals.changed() => if changed.is_err() { return },
            () = kernel.changed() => {}
            () = tokio::time::sleep(wait.unwrap_or_default()), if wait.is_some() => {}
        }
    }
}

async fn pass<K: Kernel>(kernel: &mut K, goal: &Goal, settled: Option<&Desired>) -> Pass {
    let mut pass = Pass {
        desired: None,
        done: Vec::new(),
        repair: false,
        firewall_troubles: Vec::new(),
        errors: Vec::new(),
    };
    let watched = Watched { external: goal.external, tunnel: goal.intent.tunnel.clone() };
    let observed = match kernel.observe(&watched).await {
        Ok(observed) => observed,
        Err(error) => {
            pass.errors.push(error.to_string());
            return pass;
        }
    };
    let desired = match want(goal, &observed, settled) {
        Ok(desired) => desired,
        Err(text) => {
            pass.errors.push(text);
            return pass;
        }
    };
    pass.repair = settled == Some(&desired);
    pass.firewall_troubles = observed.firewall.troubles(&desired.firewall);
    for op in diff(&desired, &observed) {
        match kernel.apply(&op).await {
            Ok(()) => pass.done.push(op),
            Err(error) => {
                pass.errors.push(error.to_string());
                // Every step on the device would fail for the same reason; the firewall stands on its own.
                if matches!(op, Op::OpenTunnel { .. }) {
                    break;
                }
            }
        }
    }
    pass.desired = Some(desired);
    pass
}

fn want(goal: &Goal, observed: &Observed, settled: Option<&Desired>) -> Result<Desired, String> {
    let mtu = match (observed.external, settled) {
        (Some(external), _) => tunnel_mtu(&goal.intent, external.mtu).map_err(|error| error.to_string())?,
        // Without its interface nothing leaves the node, but what was there keeps its last known size.
        (None, Some(settled)) => u16::try_from(settled.tunnel.mtu).unwrap_or(u16::MAX),
        (None, None) => return Err(format!("the external interface (index {}) is gone", goal.external)),
    };
    Ok(desired(&goal.intent, mtu))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;
    use crate::plan::firewall::{Firewall, FirewallOp, FirewallState, Held, Manager, Masquerade};
    use crate::plan::{LinkState, TunnelState};
    use crate::ports::KernelError;

    /// A kernel with one device, on which a test can do what an operator would.
    #[derive(Clone)]
    struct World(Rc<RefCell<Observed>>, Rc<tokio::sync::Notify>, Rc<RefCell<Option<&'static str>>>);

    impl World {
        fn new() -> Self {
            let external = Some(LinkState { index: 2, mtu: 1500, queue_len: 1000, up: true });
            let empty = Observed { external, tunnel: None, firewall: FirewallState::default() };
            Self(Rc::new(RefCell::new(empty)), Rc::default(), Rc::default())
        }

        fn poke(&self, change: impl FnOnce(&mut Observed)) {
            change(&mut self.0.borrow_mut());
            self.1.notify_one();
        }
    }

    impl Kernel for World {
        async fn observe(&mut self, _: &Watched) -> Result<Observed, KernelError> {
            Ok(self.0.borrow().clone())
        }

        async fn apply(&mut self, op: &Op) -> Result<(), KernelError> {
            if let Some(cause) = *self.2.borrow() {
                return Err(KernelError { doing: "test".into(), cause: cause.into(), remedy: None });
            }
            let mut state = self.0.borrow_mut();
            match op {
                Op::OpenTunnel { .. } => state.tunnel = Some(TunnelState::default()),
                Op::Firewall(FirewallOp::Install(home, rules)) => {
                    state.firewall.homes.insert(*home, Held::InForce(*rules));
                }
                Op::Firewall(_) => {}
                _ => {
                    let tunnel = state.tunnel.as_mut().expect("no device");
                    match op {
                        Op::SetQueueLen { packets, .. } => tunnel.link.queue_len = *packets,
                        Op::SetMtu { mtu, .. } => tunnel.link.mtu = *mtu,
                        Op::SetUp { .. } => tunnel.link.up = true,
                        Op::AddAddress { address, .. } => {
                            tunnel.addresses.insert((address.addr(), address.len()));
                        }
                        Op::RemoveAddress { address, len, .. } => {
                            tunnel.addresses.remove(&(*address, *len));
                        }
                        Op::AddRoute { to, .. } => {
                            tunnel.routes.insert(*to);
                        }
                        Op::OpenTunnel { .. } | Op::Firewall(_) => {}
                    }
                }
            }
            Ok(())
        }

        async fn changed(&mut self) {
            self.1.notified().await;
        }
    }

    fn goal() -> Goal {
        let networks = vec!["10.244.0.0/16".parse().unwrap()];
        let own_prefixes = vec!["10.244.1.0/24".parse().unwrap()];
        Goal {
            intent: Intent {
                tunnel: "flannel0".into(),
                encapsulation: encap::Encapsulation::Udp,
                underlay: encap::Family::V4,
                firewall: Firewall::new(
                    Manager::Iptables,
                    &networks,
                    &own_prefixes,
                    Some(Masquerade { fully_random: true }),
                    true,
                ),
                networks,
                own_prefixes,
            },
            external: 2,
        }
    }

    /// Runs the loop on a paused clock while `script` plays; returns the passes.
    fn play<F: Future<Output = ()>>(
        world: &World,
        goals: watch::Receiver<Option<Goal>>,
        script: F,
    ) -> Vec<(usize, bool, bool)> {
        let passes = Rc::new(RefCell::new(Vec::new()));
        let seen = passes.clone();
        let report = move |pass: &Pass| {
            seen.borrow_mut().push((pass.done.len(), pass.repair, pass.converged()));
        };
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            tokio::select! {
                () = run(world.clone(), goals, || {}, report) => {}
                () = script => {}
            }
        });
        passes.take()
    }

    async fn settle() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }

    #[test]
    fn first_pass_builds_everything_and_a_flushed_address_is_a_repair() {
        let world = World::new();
        let (_sender, goals) = watch::channel(Some(goal()));
        let poker = world.clone();
        let passes = play(&world, goals, async move {
            settle().await;
            poker.poke(|state| {
                let tunnel = state.tunnel.as_mut().unwrap();
                tunnel.addresses.clear();
                tunnel.routes.clear();
            });
            settle().await;
        });
        assert_eq!(passes, [(7, false, true), (2, true, true)]);
    }

    #[test]
    fn a_new_underlay_mtu_is_followed_and_is_no_repair() {
        let world = World::new();
        let (_sender, goals) = watch::channel(Some(goal()));
        let poker = world.clone();
        let passes = play(&world, goals, async move {
            settle().await;
            poker.poke(|state| state.external.as_mut().unwrap().mtu = 1400);
            settle().await;
        });
        assert_eq!(passes, [(7, false, true), (1, false, true)]);
        assert_eq!(world.0.borrow().tunnel.as_ref().unwrap().link.mtu, 1372);
    }

    #[test]
    fn a_lost_external_interface_keeps_the_tunnel() {
        let world = World::new();
        let (_sender, goals) = watch::channel(Some(goal()));
        let poker = world.clone();
        let passes = play(&world, goals, async move {
            settle().await;
            poker.poke(|state| state.external = None);
            settle().await;
        });
        assert_eq!(passes, [(7, false, true), (0, true, true)]);
    }

    #[test]
    fn failures_are_retried_with_growing_pauses_until_they_end() {
        let world = World::new();
        *world.2.borrow_mut() = Some("not now");
        let (_sender, goals) = watch::channel(Some(goal()));
        let fault = world.2.clone();
        let passes = play(&world, goals, async move {
            // 100 + 200 + 400 ms: the passes at 0, 100, 300 and 700 ms fail.
            tokio::time::sleep(Duration::from_millis(1000)).await;
            *fault.borrow_mut() = None;
            tokio::time::sleep(Duration::from_secs(2)).await;
        });
        assert_eq!(passes, [(0, false, false); 4].into_iter().chain([(7, false, true)]).collect::<Vec<_>>());
    }

    #[test]
    fn without_a_goal_the_kernel_is_left_alone() {
        let world = World::new();
        let (_sender, goals) = watch::channel(None);
        let passes = play(&world, goals, settle());
        assert!(passes.is_empty());
        assert_eq!(world.0.borrow().tunnel, None);
    }
}
