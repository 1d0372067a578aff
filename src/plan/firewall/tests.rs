use proptest::prelude::*;

use super::*;

const V4: Home = Home::Iptables(Variant::Nft, Family::V4);
const TABLE4: Home = Home::Nftables(Family::V4);

fn want(manager: Manager) -> Firewall {
    let networks = ["10.244.0.0/16".parse().unwrap(), "fd10:244::/48".parse().unwrap()];
    let own = ["10.244.1.0/24".parse().unwrap(), "fd10:244:0:1::/64".parse().unwrap()];
    Firewall::new(manager, &networks, &own, Some(Masquerade { fully_random: true }), true)
}

/// What a kernel does with a step.
fn apply(state: &mut FirewallState, op: &FirewallOp) {
    match op {
        FirewallOp::Install(home, rules) => drop(state.homes.insert(*home, Held::InForce(*rules))),
        FirewallOp::Remove(home) => assert!(state.homes.remove(home).is_some(), "{home} is not there"),
        FirewallOp::RemoveOwnTable => state.own_table = false,
    }
}

fn policy_drop() -> Obstacle {
    Obstacle {
        chain: "ip filter FORWARD".into(),
        hook: Hook::Forward,
        family: Some(Family::V4),
        variant: Some(Variant::Nft),
        rule: None,
    }
}

fn states() -> impl Strategy<Value = FirewallState> {
    let homes = prop_oneof![
        Just(V4),
        Just(Home::Iptables(Variant::Legacy, Family::V4)),
        Just(Home::Iptables(Variant::Nft, Family::V6)),
        Just(TABLE4),
        Just(Home::Nftables(Family::V6)),
    ];
    let held = prop_oneof![Just(Held::Changed), Just(Held::InForce(want(Manager::Iptables).rules[0]))];
    let variant = prop_oneof![Just(None), Just(Some(Variant::Nft)), Just(Some(Variant::Legacy))];
    let obstacles = prop::collection::vec(Just(policy_drop()), 0..2);
    (prop::collection::btree_map(homes, held, 0..5), variant, any::<bool>(), obstacles).prop_map(
        |(homes, variant, own_table, obstacles)| FirewallState {
            homes,
            variant,
            installed: variant.into_iter().collect(),
            own_table,
            foreign: Foreign { obstacles },
        },
    )
}

proptest! {
    #[test]
    fn one_pass_converges_and_the_next_does_nothing(mut state in states(), nft in any::<bool>()) {
        let want = want(if nft { Manager::Nftables } else { Manager::Iptables });
        let ops = diff(&want, &state);
        // What masquerades is in force before what did goes.
        let first_removal = ops.iter().position(|op| matches!(op, FirewallOp::Remove(_)));
        let last_install = ops.iter().rposition(|op| matches!(op, FirewallOp::Install(..)));
        prop_assert!(first_removal.is_none() || last_install < first_removal);
        ops.iter().for_each(|op| apply(&mut state, op));
        prop_assert_eq!(diff(&want, &state), vec![]);
    }
}

#[test]
fn nothing_wanted_leaves_nothing() {
    let none = Firewall::new(Manager::Iptables, &["10.244.0.0/16".parse().unwrap()], &[], None, false);
    let mut state = FirewallState { own_table: true, ..FirewallState::default() };
    state.homes.insert(V4, Held::Changed);
    assert_eq!(diff(&none, &state), [FirewallOp::Remove(V4), FirewallOp::RemoveOwnTable]);
}

#[test]
fn a_policy_of_drop_in_iptables_is_opened_from_nftables_mode_and_closed_when_it_goes() {
    let want = want(Manager::Nftables);
    let mut state = FirewallState {
        variant: Some(Variant::Nft),
        installed: BTreeSet::from([Variant::Nft]),
        ..FirewallState::default()
    };
    diff(&want, &state).iter().for_each(|op| apply(&mut state, op));
    state.foreign.obstacles.push(policy_drop());
    let only_forward = Rules { masquerade: None, ..want.rules[0] };
    assert_eq!(diff(&want, &state), [FirewallOp::Install(V4, only_forward)]);
    assert_eq!(state.troubles(&want), [""; 0]);
    diff(&want, &state).iter().for_each(|op| apply(&mut state, op));
    state.foreign.obstacles.clear();
    assert_eq!(diff(&want, &state), [FirewallOp::Remove(V4)]);
}

#[test]
fn what_cannot_be_opened_is_said_once_for_those_it_concerns() {
    let want = want(Manager::Nftables);
    let without_program =
        FirewallState { foreign: Foreign { obstacles: vec![policy_drop()] }, ..FirewallState::default() };
    let said = without_program.troubles(&want);
    assert!(said.len() == 1 && said[0].contains("10.244.0.0/16") && !said[0].contains("fd10"), "{said:?}");
    let hidden = Obstacle { hook: Hook::Postrouting, rule: Some("ACCEPT"), ..policy_drop() };
    let state = FirewallState { foreign: Foreign { obstacles: vec![hidden] }, ..without_program };
    assert_eq!(state.troubles(&want), [""; 0]);
    assert_eq!(state.troubles(&self::want(Manager::Iptables)).len(), 1);
}
