//! The loop on a paused clock, over the model of the kernel.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use encap::Family;

use super::*;
use crate::plan::firewall::{Guard, Senders};
use crate::plan::object::address;
use crate::plan::{Belief, Device, LinkState, Observed, Op, Parts, Watched, model};
use crate::ports::{KernelError, Seen};
use crate::report::{Code, Severity};

const TUNNEL: Device = Device::Tunnel(Family::V4);

/// Whether a step is refused.
type Refuses = fn(&Op) -> bool;

/// A kernel on which a test can do what an operator would.
#[derive(Clone)]
struct World {
    state: Rc<RefCell<Observed>>,
    changed: Rc<tokio::sync::Notify>,
    refuses: Rc<RefCell<Refuses>>,
    /// Why it cannot be read.
    unreadable: Rc<Cell<Option<&'static str>>>,
    /// What was changed has been announced.
    told: Rc<Cell<bool>>,
    belief: Belief,
}

impl World {
    fn new() -> Self {
        let external = LinkState { index: 2, mtu: 1500, up: true, ..LinkState::default() };
        let links = BTreeMap::from([(Device::External, external)]);
        let refuses: Refuses = |_| false;
        Self {
            state: Rc::new(RefCell::new(Observed { links, ..Observed::default() })),
            changed: Rc::default(),
            refuses: Rc::new(RefCell::new(refuses)),
            unreadable: Rc::default(),
            told: Rc::default(),
            belief: Belief::default(),
        }
    }

    fn poke(&self, change: impl FnOnce(&mut Observed)) {
        change(&mut self.state.borrow_mut());
        self.told.set(true);
        self.changed.notify_one();
    }

    fn refuse(&self, refuses: Refuses) {
        *self.refuses.borrow_mut() = refuses;
    }
}

impl Kernel for World {
    async fn observe(&mut self, _: &Watched, everything: bool) -> Result<Seen<'_>, KernelError> {
        if let Some(cause) = self.unreadable.get() {
            return Err(KernelError::new("list routes", cause));
        }
        if self.told.take() {
            self.belief.doubt(Parts::ALL);
        }
        let seen = self.state.borrow().clone();
        let read = self.belief.begin(&seen, everything);
        let unannounced = self.belief.renew(seen, read);
        Ok(Seen { observed: self.belief.observed(), unannounced })
    }

    async fn apply(&mut self, ops: &[Op]) -> Vec<Result<(), KernelError>> {
        let one = |op: &Op| {
            if self.refuses.borrow()(op) {
                return Err(KernelError::new("test", "not now"));
            }
            model::apply(&mut self.state.borrow_mut(), op);
            self.belief.note(op);
            Ok(())
        };
        ops.iter().map(one).collect()
    }

    async fn changed(&mut self) {
        self.changed.notified().await;
    }
}

fn goal() -> Arc<Intent> {
    Arc::new(crate::plan::sample_intent())
}

/// Runs the loop while `script` plays; of each pass the steps done, whether it was a repair, and whether it converged.
fn play<F: Future<Output = ()>>(
    world: &World,
    goals: watch::Receiver<Option<Arc<Intent>>>,
    script: F,
) -> Vec<(usize, bool, bool)> {
    watch_passes(world, goals, |pass| (pass.done.len(), pass.repair, pass.converged()), script)
}

/// Runs the loop while `script` plays; what `look` sees in each pass.
fn watch_passes<T, F: Future<Output = ()>>(
    world: &World,
    goals: watch::Receiver<Option<Arc<Intent>>>,
    look: impl Fn(&Pass) -> T,
    script: F,
) -> Vec<T> {
    let passes = RefCell::new(Vec::new());
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        tokio::select! {
            () = run(world.clone(), goals, || {}, |pass| passes.borrow_mut().push(look(pass))) => {}
            () = script => {}
        }
    });
    passes.into_inner()
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
            state.addresses.clear();
            state.routes.clear();
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
        poker.poke(|state| state.links.get_mut(&Device::External).unwrap().mtu = 1400);
        settle().await;
    });
    assert_eq!(passes, [(7, false, true), (1, false, true)]);
    assert_eq!(world.state.borrow().links[&TUNNEL].mtu, 1372);
}

#[test]
fn a_lost_external_interface_keeps_the_tunnel() {
    let world = World::new();
    let (_sender, goals) = watch::channel(Some(goal()));
    let poker = world.clone();
    let passes = play(&world, goals, async move {
        settle().await;
        poker.poke(|state| drop(state.links.remove(&Device::External)));
        settle().await;
    });
    assert_eq!(passes, [(7, false, true), (0, true, true)]);
}

#[test]
fn failures_are_retried_with_growing_pauses_until_they_end() {
    let world = World::new();
    world.refuse(|_| true);
    let (_sender, goals) = watch::channel(Some(goal()));
    let fault = world.clone();
    let passes = play(&world, goals, async move {
        // 100 + 200 + 400 ms: the passes at 0, 100, 300 and 700 ms fail.
        tokio::time::sleep(Duration::from_millis(1000)).await;
        fault.refuse(|_| false);
        tokio::time::sleep(Duration::from_secs(2)).await;
    });
    assert_eq!(passes, [(0, false, false); 4].into_iter().chain([(7, false, true)]).collect::<Vec<_>>());
}

/// Out of descriptors for a while: nobody knows what the kernel holds, and nothing says that it differs.
#[test]
fn a_kernel_that_cannot_be_read_is_a_concern_of_its_own_until_it_can() {
    let world = World::new();
    let (sender, goals) = watch::channel(Some(goal()));
    let fault = world.clone();
    let look = |pass: &Pass| {
        let told = pass.concerns.iter().map(|concern| (concern.code, concern.severity)).collect::<Vec<_>>();
        let over = pass.decided.contains(&Code::KernelFailing);
        (told, over, pass.failures(), pass.done.len())
    };
    let passes = watch_passes(&world, goals, look, async move {
        settle().await;
        fault.unreadable.set(Some("Too many open files"));
        fault.changed.notify_one();
        settle().await;
        // What is new cannot be put in force without reading.
        sender.send_replace(Some(Arc::new(Intent { blackhole: true, ..crate::plan::sample_intent() })));
        tokio::time::sleep(Duration::from_millis(1)).await;
        fault.unreadable.set(None);
        tokio::time::sleep(RETRY.1).await;
    });
    let unreadable = |severity| (vec![(Code::KernelUnreadable, severity)], false, 1, 0);
    assert_eq!(passes.first(), Some(&(Vec::new(), true, 0, 7)));
    assert_eq!(passes[1], unreadable(Severity::Degraded));
    assert!(passes.contains(&unreadable(Severity::Broken)), "{passes:?}");
    assert_eq!(passes.last(), Some(&(Vec::new(), true, 0, 1)));
}

/// How bad a failure is comes with the step, whatever the order of the stages.
#[test]
fn each_step_that_fails_has_the_code_that_belongs_to_it() {
    let world = World::new();
    let mut intent = crate::plan::sample_intent();
    intent.firewall.guard =
        Some(Guard { port: 8472, senders: Senders::new(std::iter::empty()), untracked: true, check: None });
    let (_sender, goals) = watch::channel(Some(Arc::new(intent)));
    world.refuse(|op| {
        op.failure() != Code::KernelFailing || matches!(op, Op::Address(address::Step::Add { .. }))
    });
    let codes = |pass: &Pass| pass.concerns.iter().map(|concern| concern.code).collect::<Vec<_>>();
    let passes = watch_passes(&world, goals, codes, settle());
    assert_eq!(passes[0], [Code::TunnelUnguarded, Code::KernelWarning, Code::KernelFailing]);
}

#[test]
fn a_setting_that_cannot_be_written_is_a_warning() {
    let world = World::new();
    world.refuse(|op| op.object() == crate::plan::Object::Sysctl);
    let (_sender, goals) = watch::channel(Some(goal()));
    let passes = play(&world, goals, settle());
    assert_eq!(passes, [(6, false, true)]);
}

#[test]
fn doors_that_cannot_be_put_in_force_are_tried_again_soon() {
    let world = World::new();
    world.refuse(|op| matches!(op, Op::Firewall(op) if op.is_optional()));
    let mut intent = crate::plan::sample_intent();
    intent.firewall.guard =
        Some(Guard { port: 8472, senders: Senders::new(std::iter::empty()), untracked: true, check: None });
    let (_sender, goals) = watch::channel(Some(Arc::new(intent)));
    let fault = world.clone();
    let passes = play(&world, goals, async move {
        // 100 + 200 + 400 ms, as above; pods are served meanwhile.
        tokio::time::sleep(Duration::from_millis(1000)).await;
        fault.refuse(|_| false);
        tokio::time::sleep(Duration::from_secs(2)).await;
    });
    assert_eq!(
        passes,
        [(7, false, true), (0, true, true), (0, true, true), (0, true, true), (1, true, true)]
    );
}

/// A hole in what the kernel announces, or in what is made of it, lasts until everything is looked at again.
#[test]
fn what_nobody_has_told_is_found_by_the_safety_pass_and_by_who_asks_for_one() {
    let world = World::new();
    let (sender, goals) = watch::channel(Some(goal()));
    let quiet = world.clone();
    let flush = |world: &World| world.state.borrow_mut().routes.clear();
    let script = async {
        settle().await;
        // The first steps made devices, after which everything is read once more.
        quiet.poke(|_| {});
        settle().await;
        flush(&quiet);
        // A look for another reason goes by what is believed.
        let other = Arc::new(Intent { blackhole: true, ..crate::plan::sample_intent() });
        sender.send_replace(Some(other));
        settle().await;
        assert_eq!(quiet.state.borrow().routes.len(), 1);
        tokio::time::sleep(SAFETY.mul_f64(1.2)).await;
        assert_eq!(quiet.state.borrow().routes.len(), 2);
        flush(&quiet);
        sender.send_modify(|_| {});
        settle().await;
        assert_eq!(quiet.state.borrow().routes.len(), 2);
    };
    let found = watch_passes(&world, goals, |pass| (pass.unannounced, pass.done.len()), script);
    assert_eq!(found, [(0, 7), (0, 0), (0, 1), (1, 1), (2, 2)]);
}

#[test]
fn without_a_goal_the_kernel_is_left_alone() {
    let world = World::new();
    let (_sender, goals) = watch::channel(None);
    let passes = play(&world, goals, settle());
    assert!(passes.is_empty());
    assert!(!world.state.borrow().links.contains_key(&TUNNEL));
}
